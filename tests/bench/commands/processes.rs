//! Processes of this program's own that are told what to do and answer, a line each.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use projector::{replica::dynamodb::DynamoSettings, store::StoreSettings};

use super::Failure;

/// A process with these arguments; dropped, it is ended.
pub(super) struct Process {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Process {
    pub(super) fn start(arguments: &[&str]) -> Result<Self, Failure> {
        let mut child = Command::new(std::env::current_exe()?)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
        Ok(Self {
            child,
            stdin: stdin.ok_or("no way to tell a process anything")?,
            stdout: BufReader::new(stdout.ok_or("no way to hear a process")?),
        })
    }

    /// Tells it a line.
    pub(super) fn tell(&mut self, line: &str) -> Result<(), Failure> {
        writeln!(self.stdin, "{line}")?;
        Ok(self.stdin.flush()?)
    }

    /// Its next line.
    pub(super) fn hear(&mut self) -> Result<String, Failure> {
        let mut line = String::new();
        if self.stdout.read_line(&mut line)? == 0 {
            return Err("a process ended without an answer".into());
        }
        Ok(line.trim_end().to_owned())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself, which is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// How a process of its own reaches both stores.
pub(super) fn reaching(connection: &str, endpoint: &str) -> StoreSettings {
    StoreSettings {
        dynamodb: DynamoSettings {
            endpoint: Some(endpoint.to_owned()),
            region: Some("eu-central-1".to_owned()),
            ..DynamoSettings::default()
        },
        ..StoreSettings::new(connection)
    }
}
