//! The command line: what each subcommand takes, and what the process exits with.
//!
//! One file a subcommand. Here are the options that all share, and the one list of exit codes.

use std::{fmt::Display, path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};

use crate::{
    app::RunError,
    config::{ConfigError, Inputs, Planned, Settings},
    journal::JournalError,
    panics,
    projection::{Registry, RegistryError},
    replica::StoreError,
    telemetry,
};

mod demo;
#[cfg(feature = "embedded")]
mod dev;
mod get;
mod health;
mod import;
mod out;
mod pages;
mod provision;
mod redrive;
mod run;
#[cfg(feature = "embedded")]
mod stack;
mod status;
mod traces;

/// What the process exits with. The numbers from 64 on are those of `sysexits.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// It ran, and the answer is no: unhealthy, no such replica, lines left out.
    No = 1,
    /// The command line or the settings are wrong.
    Usage = 64,
    /// A store cannot be reached, or the daemon whose pages were asked.
    Unavailable = 69,
    /// A fault in the program itself.
    Fault = 70,
    /// An address or file cannot be taken.
    CantCreate = 73,
    /// A store refuses: a permission or a table is missing.
    Denied = 77,
}

/// Every exit code with what it means, for help and documentation.
pub const EXIT_CODES: [(u8, &str); 8] = [
    (0, "done; `run`, `dev` and `stack`: stopped as asked"),
    (
        1,
        "ran, and the answer is no: unhealthy, no such replica, lines left out",
    ),
    (64, "the command line or the settings are wrong"),
    (69, "a store, or the daemon that was asked, cannot be reached"),
    (70, "a fault in the program itself"),
    (73, "an address or a file cannot be taken"),
    (77, "a store refuses: a permission or a table is missing"),
    (130, "asked to stop twice: ended without waiting"),
];

/// Why a command did not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// What the process exits with.
    pub exit: Exit,
    /// For people; complete as it stands.
    pub message: String,
}

impl Failure {
    fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self {
            exit,
            message: message.into(),
        }
    }

    /// `error` is a fragment that reads after "failed to".
    fn to(exit: Exit, error: &impl Display) -> Self {
        Self::new(exit, format!("failed to {error}"))
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::to(Exit::Usage, &error)
    }
}

impl From<RegistryError> for Failure {
    fn from(error: RegistryError) -> Self {
        Self::to(Exit::Usage, &error)
    }
}

impl From<RunError> for Failure {
    fn from(error: RunError) -> Self {
        let exit = match error {
            RunError::Listen(_) => Exit::CantCreate,
            _ => Exit::Usage,
        };
        Self::to(exit, &error)
    }
}

impl From<JournalError> for Failure {
    fn from(error: JournalError) -> Self {
        let exit = match error {
            JournalError::Unavailable(_) | JournalError::OutcomeUnknown(_) => Exit::Unavailable,
            JournalError::Denied { .. } => Exit::Denied,
            _ => Exit::No,
        };
        Self::to(exit, &error)
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        let exit = match error {
            StoreError::Unavailable(_) | StoreError::Throttled { .. } => Exit::Unavailable,
            StoreError::Setup { .. } | StoreError::NoTable { .. } => Exit::Denied,
            StoreError::Corrupt { .. } => Exit::No,
        };
        Self::to(exit, &error)
    }
}

/// Versioned read replicas of EventStoreDB streams in DynamoDB.
///
/// Consumes EventStoreDB persistent subscriptions, folds the events of each stream and keeps one
/// replica a stream and projection in DynamoDB.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100, after_help = AFTER)]
struct Cli {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    command: Option<Command>,
}

const AFTER: &str = "\
To see it work, with nothing installed:  projector dev
Settings: config/default.toml lists them all; over it go config/{PROJECTOR_ENV}.toml, the variable
PROJECTOR_CONFIG_TOML, variables PROJECTOR__SECTION__KEY and --set section.key=value.

Exit codes: 0 done; 1 ran and the answer is no; 64 command line or settings wrong; 69 a store or the
daemon cannot be reached; 70 a fault in the program; 73 an address or file cannot be taken; 77 a
permission or a table is missing; 130 asked twice to stop.";

/// Options of every command.
#[derive(Clone, Debug, Default, clap::Args)]
struct Common {
    /// The folder with the settings files [default: config, where there is one].
    #[arg(long, global = true, value_name = "DIR")]
    config_dir: Option<PathBuf>,
    /// A setting, over files and variables; again for more.
    #[arg(long, global = true, value_name = "SECTION.KEY=VALUE", value_parser = key_value)]
    set: Vec<(String, String)>,
    /// EventStoreDB's connection string; short for --set eventstore.connection=….
    #[arg(long, global = true, value_name = "CONNECTION")]
    eventstore: Option<String>,
    /// A local DynamoDB; short for --set dynamodb.endpoint=….
    #[arg(long, global = true, value_name = "URL")]
    dynamodb: Option<String>,
    /// Know the projection of the demo's orders, as `dev` does, to look at its replicas.
    #[arg(long, global = true)]
    demo: bool,
}

fn key_value(text: &str) -> Result<(String, String), String> {
    let (key, value) = text
        .split_once('=')
        .ok_or("write SECTION.KEY=VALUE, such as log.filter=debug")?;
    Ok((key.trim().to_owned(), value.to_owned()))
}

#[derive(Debug, Subcommand)]
enum Command {
    Run(run::Args),
    #[cfg(feature = "embedded")]
    Dev(dev::Args),
    #[cfg(feature = "embedded")]
    Stack(stack::Args),
    Demo(demo::Args),
    Import(import::Args),
    Provision(provision::Args),
    Status(status::Args),
    Health(health::Args),
    Get(get::Args),
    Redrive(redrive::Args),
}

impl Command {
    /// Whether it runs the daemon.
    fn runs_daemon(&self) -> bool {
        match self {
            Self::Run(_) => true,
            #[cfg(feature = "embedded")]
            Self::Dev(_) => true,
            _ => false,
        }
    }

    /// Whether it runs until it is stopped, so that its log is read.
    fn stays(&self) -> bool {
        #[cfg(feature = "embedded")]
        if matches!(self, Self::Stack(_)) {
            return true;
        }
        self.runs_daemon()
    }

    /// Whether it folds, and may mark a replica with the fingerprint of its code.
    fn folds(&self) -> bool {
        self.runs_daemon() || matches!(self, Self::Redrive(_))
    }
}

/// What every command gets.
struct Context {
    settings: Settings,
    registry: Registry,
}

impl Context {
    /// The projections, planned.
    fn plan(&self) -> Result<Vec<Planned>, Failure> {
        Ok(self.settings.plan(&self.registry)?)
    }

    /// The projection that is asked for, or the only one.
    fn one(&self, name: Option<&str>) -> Result<Planned, Failure> {
        let mut planned = self.plan()?;
        let names: Vec<_> = planned.iter().map(|p| p.fold.name().to_owned()).collect();
        let known = if names.is_empty() {
            "there is none: add a [projection.NAME] table to the settings".to_owned()
        } else {
            format!("there are: {}", names.join(", "))
        };
        let at = match name {
            Some(name) => names.iter().position(|n| n == name),
            None if planned.len() == 1 => Some(0),
            None => None,
        };
        match (at, name) {
            (Some(at), _) => Ok(planned.swap_remove(at)),
            (None, Some(name)) => Err(Failure::new(
                Exit::Usage,
                format!("failed to find projection `{name}`: {known}"),
            )),
            (None, None) => Err(Failure::new(
                Exit::Usage,
                format!("failed to choose a projection: name one by --projection; {known}"),
            )),
        }
    }
}

/// The whole of a `main`: runs this process's command line with the projections that `build` adds.
///
/// ```no_run
/// # use projector::{aggregate::Aggregate, event::Event};
/// # #[derive(Default, Clone, serde::Serialize, serde::Deserialize)] struct Loan;
/// # #[derive(serde::Serialize, serde::Deserialize)] enum LoanEvent { Opened {} }
/// # impl Event for LoanEvent {}
/// # impl Aggregate for Loan { const CATEGORY: &'static str = "loan"; type Event = LoanEvent; fn apply(&mut self, _: LoanEvent) {} }
/// fn main() -> std::process::ExitCode {
///     projector::cli::main(|registry| registry.with::<Loan>())
/// }
/// ```
///
/// The registry's fingerprint is the executable's: an aggregate that another build quarantined is
/// tried again by this one.
pub fn main(build: impl FnOnce(Registry) -> Result<Registry, RegistryError>) -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version come this way too. A closed pipe is the reader's own wish.
            let _ = error.print();
            return if error.use_stderr() {
                code(Exit::Usage)
            } else {
                ExitCode::SUCCESS
            };
        }
    };
    match start(cli, build) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if !failure.message.is_empty() {
                out::complain(&failure.message);
            }
            code(failure.exit)
        }
    }
}

/// Tells builds apart: the same for every task that runs this executable.
fn fingerprint() -> String {
    use std::{hash::Hasher as _, io::Read as _};
    // Unkeyed, so the same in every process of one build, which is all that is asked of it.
    let mut hash = std::hash::DefaultHasher::new();
    let hashed = std::env::current_exe()
        .and_then(std::fs::File::open)
        .and_then(|mut file| {
            let mut buffer = vec![0; 1 << 16];
            loop {
                match file.read(&mut buffer)? {
                    0 => return Ok(()),
                    n => hash.write(&buffer[..n]),
                }
            }
        });
    let version = env!("CARGO_PKG_VERSION");
    match hashed {
        Ok(()) => format!("{version} {:016x}", hash.finish()),
        // Without it, marks of other builds of this version are not tried again by themselves.
        Err(_) => version.to_owned(),
    }
}

fn code(exit: Exit) -> ExitCode {
    ExitCode::from(exit as u8)
}

fn start(cli: Cli, build: impl FnOnce(Registry) -> Result<Registry, RegistryError>) -> Result<(), Failure> {
    #[cfg(feature = "embedded")]
    let command = cli.command.unwrap_or_else(|| Command::Dev(dev::Args::default()));
    #[cfg(not(feature = "embedded"))]
    let Some(command) = cli.command else {
        use clap::CommandFactory as _;
        let _ = Cli::command().print_help();
        return Err(Failure::new(Exit::Usage, ""));
    };
    let settings = cli.common.settings()?;
    let mut log = settings.log.clone();
    // What is asked for once is answered on standard output; logs of it are for the curious.
    if !command.stays() && log.filter == Settings::default().log.filter {
        "warn,eventstore=off".clone_into(&mut log.filter);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(Exit::Fault, format!("failed to start threads: {error}")))?;
    let traces = traces::Sent::begun(command.runs_daemon(), &runtime)?;
    telemetry::install_with(&log, traces.spans()).map_err(|error| Failure::to(Exit::Usage, &error))?;
    panics::log_them();
    // Of a large executable, reading it would be most of what a short command takes, and of a stack's start.
    let fingerprint = if command.folds() { fingerprint() } else { String::new() };
    let registry = build(Registry::new(fingerprint))?;
    let registry = if cli.common.demo {
        demo::add(registry)?
    } else {
        registry
    };
    let context = Context { settings, registry };
    let done = runtime.block_on(async {
        match command {
            Command::Run(args) => run::run(args, &context).await,
            #[cfg(feature = "embedded")]
            Command::Dev(args) => dev::run(args, context).await,
            #[cfg(feature = "embedded")]
            Command::Stack(args) => stack::run(args).await,
            Command::Demo(args) => demo::run(args, &context).await,
            Command::Import(args) => import::run(args, &context).await,
            Command::Provision(args) => provision::run(args, &context).await,
            Command::Status(args) => status::run(args, &context).await,
            Command::Health(args) => health::run(args, &context).await,
            Command::Get(args) => get::run(args, &context).await,
            Command::Redrive(args) => redrive::run(args, &context).await,
        }
    });
    traces.end();
    // A blocking read of standard input must not keep a process that is done.
    runtime.shutdown_background();
    done
}

impl Common {
    fn settings(&self) -> Result<Settings, Failure> {
        let mut inputs = Inputs {
            dir: self.config_dir.clone(),
            ..Inputs::from_process()
        };
        let short = [
            ("eventstore.connection", &self.eventstore),
            ("dynamodb.endpoint", &self.dynamodb),
        ];
        let short = short
            .into_iter()
            .filter_map(|(key, value)| Some((key.to_owned(), value.clone()?)));
        inputs.flags = short.chain(self.set.iter().cloned()).collect();
        Ok(Settings::load(&inputs)?)
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_sound_and_every_command_teaches() {
        let command = Cli::command();
        command.clone().debug_assert();
        for command in command.get_subcommands() {
            let name = command.get_name();
            assert!(command.get_about().is_some(), "{name}");
            for argument in command.get_arguments() {
                assert!(argument.get_help().is_some(), "{name} {argument}");
            }
        }
    }

    #[test]
    fn help_names_every_exit_code() {
        for (code, _) in EXIT_CODES {
            assert!(AFTER.contains(&format!("{code} ")), "{code}");
        }
        let all = [
            Exit::No,
            Exit::Usage,
            Exit::Unavailable,
            Exit::Fault,
            Exit::CantCreate,
            Exit::Denied,
        ];
        assert!(
            all.iter()
                .all(|exit| EXIT_CODES.iter().any(|(code, _)| *code == *exit as u8))
        );
    }
}
