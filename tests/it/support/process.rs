//! The binary as an operator runs it: commands with their output, and daemons that run beside a test.

#![allow(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

use std::{
    collections::BTreeMap,
    path::Path,
    process::{ExitStatus, Stdio},
    time::Duration,
};

use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncRead, AsyncWriteExt as _, BufReader},
    process::{Child, Command},
    sync::watch,
};

/// Longest that anything here is waited for.
const PATIENCE: Duration = Duration::from_secs(30);

/// Settings of a process, as variables.
#[derive(Clone, Debug, Default)]
pub(crate) struct World(BTreeMap<String, String>);

/// What a command printed and how it ended.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl World {
    /// Both stores, and one projection without code on the category `order`. Time-outs are short
    /// for tests of outages, and long enough for a machine on which everything runs at once.
    pub(crate) fn new(eventstore: &str, dynamodb: &str, prefix: &str) -> Self {
        Self::default()
            .with("EVENTSTORE__CONNECTION", eventstore)
            .with("EVENTSTORE__OPERATION_TIMEOUT", "5s")
            .with("DYNAMODB__ENDPOINT", dynamodb)
            .with("DYNAMODB__REGION", "us-east-1")
            .with("DYNAMODB__TABLE_PREFIX", prefix)
            .with("DYNAMODB__CREATE_TABLES", "plain")
            .with("DYNAMODB__OPERATION_TIMEOUT", "5s")
            .with("DYNAMODB__ATTEMPT_TIMEOUT", "2s")
            .with("DYNAMODB__CONNECT_TIMEOUT", "2s")
            .with("PROJECTION__ORDERS__FOLD", "merge-patch")
            .with("PROJECTION__ORDERS__SOURCE", "category:order")
            .with("HTTP__LISTEN", "127.0.0.1:0")
            .with("HTTP__PROBE_EVERY", "100ms")
            .with("ENGINE__MEASURE_EVERY", "100ms")
            .with("LOG__FORMAT", "json")
    }

    /// With one setting more.
    pub(crate) fn with(mut self, key: &str, value: &str) -> Self {
        self.0.insert(format!("PROJECTOR__{key}"), value.to_owned());
        self
    }

    /// With any variable.
    pub(crate) fn variable(mut self, name: &str, value: &str) -> Self {
        self.0.insert(name.to_owned(), value.to_owned());
        self
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_projector"));
        // Only what a process needs to run, and what the test says.
        command
            .env_clear()
            .envs(std::env::vars().filter(|(name, _)| ["PATH", "HOME", "TMPDIR"].contains(&name.as_str())))
            .env("AWS_EC2_METADATA_DISABLED", "true")
            .envs(&self.0)
            .args(arguments)
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }

    /// Runs a command to its end.
    pub(crate) async fn run(&self, arguments: &[&str]) -> Done {
        self.run_with(arguments, "").await
    }

    /// Runs a command with something on its standard input.
    pub(crate) async fn run_with(&self, arguments: &[&str], input: &str) -> Done {
        let mut command = self.command(arguments);
        let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        // A command that reads nothing closes its end; that is its right.
        let _ = stdin.write_all(input.as_bytes()).await;
        drop(stdin);
        let output = tokio::time::timeout(PATIENCE, child.wait_with_output())
            .await
            .unwrap_or_else(|_| panic!("{arguments:?} did not end"))
            .unwrap();
        Done {
            code: output.status.code().unwrap_or(-1),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// Starts what runs until it is asked to stop.
    pub(crate) fn spawn(&self, arguments: &[&str]) -> Daemon {
        let mut child = self.command(arguments).spawn().unwrap();
        Daemon {
            log: lines_of(child.stderr.take().unwrap()),
            out: lines_of(child.stdout.take().unwrap()),
            child,
            address: String::new(),
        }
    }

    /// Starts the daemon; it answers when this returns.
    pub(crate) async fn daemon(&self) -> Daemon {
        let mut daemon = self.spawn(&["run"]);
        let started = daemon.logged("started").await;
        started["address"].as_str().unwrap().clone_into(&mut daemon.address);
        daemon
    }
}

/// All lines of a stream, as they come.
fn lines_of(stream: impl AsyncRead + Unpin + Send + 'static) -> watch::Receiver<String> {
    let (lines, seen) = watch::channel(String::new());
    tokio::spawn(async move {
        let mut reader = BufReader::new(stream).lines();
        while let Ok(Some(line)) = reader.next_line().await {
            lines.send_modify(|all| {
                all.push_str(&line);
                all.push('\n');
            });
        }
    });
    seen
}

/// A daemon that runs; killed when it is dropped.
pub(crate) struct Daemon {
    child: Child,
    log: watch::Receiver<String>,
    out: watch::Receiver<String>,
    /// Where its pages are.
    pub(crate) address: String,
}

impl Daemon {
    /// Its process.
    pub(crate) fn id(&self) -> u32 {
        self.child.id().unwrap()
    }

    /// All that it has logged.
    pub(crate) fn log(&self) -> String {
        self.log.borrow().clone()
    }

    /// What it has printed, once this is part of it.
    pub(crate) async fn printed(&mut self, part: &str) -> String {
        let waited = tokio::time::timeout(PATIENCE, self.out.wait_for(|out| out.contains(part))).await;
        let found = matches!(waited, Ok(Ok(_)));
        drop(waited);
        let out = self.out.borrow().clone();
        assert!(found, "`{part}` was not printed in:\n{out}\n{}", self.log());
        out
    }

    /// The first line of its log with this message, waited for.
    pub(crate) async fn logged(&mut self, message: &str) -> Value {
        let find = |log: &String| {
            log.lines()
                .filter_map(|line| serde_json::from_str::<Value>(line).ok())
                .find(|line| line["message"] == message)
        };
        let waited = tokio::time::timeout(PATIENCE, self.log.wait_for(|log| find(log).is_some())).await;
        let found = matches!(waited, Ok(Ok(_)));
        drop(waited);
        assert!(found, "`{message}` was not logged in:\n{}", self.log());
        find(&self.log()).unwrap()
    }

    /// A page: its status and its text.
    pub(crate) async fn page(&self, path: &str) -> (u16, String) {
        let answer = reqwest::get(format!("http://{}{path}", self.address)).await.unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    }

    /// `/status`.
    pub(crate) async fn status(&self) -> Value {
        serde_json::from_str(&self.page("/status").await.1).unwrap()
    }

    /// The value of a metric's sample that begins so.
    pub(crate) async fn metric(&self, sample: &str) -> f64 {
        let text = self.page("/metrics").await.1;
        let line = text
            .lines()
            .find(|l| l.starts_with(sample))
            .unwrap_or_else(|| panic!("no {sample} in\n{text}"));
        line.rsplit_once(' ').unwrap().1.parse().unwrap()
    }

    /// Waits until it is ready.
    pub(crate) async fn ready(&self) {
        super::node::until("the daemon is ready", async || self.page("/readyz").await.0 == 200).await;
    }

    /// Asks it to stop, as ECS does.
    pub(crate) async fn ask_to_stop(&self) {
        let id = self.child.id().unwrap().to_string();
        let signalled = Command::new("kill").args(["-TERM", &id]).status().await.unwrap();
        assert!(signalled.success());
    }

    /// Asks it to stop and waits for its end.
    pub(crate) async fn stop(mut self) -> (ExitStatus, String) {
        self.ask_to_stop().await;
        let status = tokio::time::timeout(PATIENCE, self.child.wait())
            .await
            .unwrap()
            .unwrap();
        // Its last lines may still be on their way when it has ended.
        let read = async { while self.log.changed().await.is_ok() {} };
        tokio::time::timeout(PATIENCE, read).await.unwrap();
        (status, self.log())
    }

    /// Kills it as `kill -9` does.
    pub(crate) async fn kill(mut self) {
        self.child.kill().await.unwrap();
    }
}

/// A line of an import's file.
pub(crate) fn line(stream: &str, kind: &str, data: &Value) -> String {
    format!(
        "{}\n",
        serde_json::json!({ "stream": stream, "type": kind, "data": data })
    )
}

/// Writes a file of a test's own.
pub(crate) fn write(dir: &Path, name: &str, text: &str) -> String {
    let path = dir.join(name);
    std::fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}
