//! `projector stack`: EventStoreDB and DynamoDB inside this process, for tests and trying out.

use std::{convert::Infallible, net::Ipv4Addr, path::PathBuf, str::FromStr, time::Duration};

use super::{Exit, Failure, out};
use crate::{
    app,
    embedded::{
        dynamodb,
        eventstore::{self, SystemProjection},
    },
};

/// Run an EventStoreDB-compatible server and a DynamoDB emulator in this process
///
/// For any language's client, spoken to over their real protocols on loopback. Prints both
/// endpoints when they answer, as lines that can be sourced: NAME=VALUE. (And that tables are made
/// plain, for the emulator has no backups and no protection.) In memory unless --data-dir is given.
/// Ctrl-C stops both.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    place: StackPlace,
    /// EventStoreDB's port; 0 takes a free one.
    #[arg(long, value_name = "PORT", default_value_t = 2113)]
    eventstore_port: u16,
    /// DynamoDB's port; 0 takes a free one.
    #[arg(long, value_name = "PORT", default_value_t = 8000)]
    dynamodb_port: u16,
    /// Serve EventStoreDB with TLS, by a certificate made at start.
    #[arg(long)]
    tls: bool,
    /// Let only these users in, with the permissions of EventStoreDB's default policy: members of $admins
    /// may do everything, of $ops manage groups. Repeat it for more; without it everybody may do
    /// everything.
    #[arg(long = "user", value_name = "NAME:PASSWORD[:GROUP,...]")]
    users: Vec<Named>,
    /// Which system projections run: none, as EventStoreDB comes; standard, all five, as it is tested
    /// with; or some by name, as `$by_category,$by_event_type`.
    #[arg(long, value_name = "none|standard|NAMES", default_value = "standard", value_parser = projections)]
    projections: Projections,
    /// How long an append is accepted before it is committed (as 50ms): meanwhile a conflict names it
    /// and no read shows it, as on a busy cluster. 0s commits as soon as the disk does.
    #[arg(long, value_name = "TIME", default_value = "0s", value_parser = delay)]
    delay_commits: Duration,
}

/// A server's writes end after 2.5 s: what waits longer would never be answered.
const LONGEST_DELAY: Duration = Duration::from_secs(2);

fn delay(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(delay) if delay <= LONGEST_DELAY => Ok(delay),
        Ok(_) => Err("at most 2s: EventStoreDB gives up an append after 2.5 s".to_owned()),
        Err(error) => Err(format!("{error}; write it as 50ms")),
    }
}

/// System projections as the command line names them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Projections(Vec<SystemProjection>);

impl Default for Projections {
    /// As a node that is started with its standard projections.
    fn default() -> Self {
        Self(SystemProjection::ALL.to_vec())
    }
}

fn projections(text: &str) -> Result<Projections, String> {
    if text == "none" {
        return Ok(Projections(Vec::new()));
    }
    if text == "standard" {
        return Ok(Projections::default());
    }
    let mut named = Vec::new();
    for name in text.split(',').map(str::trim) {
        // A shell takes what begins with `$` for a variable of its own.
        let whole = format!("${}", name.trim_start_matches('$'));
        let known = SystemProjection::named(&whole).ok_or_else(|| {
            let all = SystemProjection::ALL.map(SystemProjection::name).join(", ");
            format!("`{name}` is no system projection; say none, standard, or some of {all}, with or without their $")
        })?;
        if !named.contains(&known) {
            named.push(known);
        }
    }
    Ok(Projections(named))
}

/// A user as the command line names it, or nothing that is one: clap would repeat it, password and all.
#[derive(Clone, Debug)]
struct Named(Option<eventstore::User>);

impl FromStr for Named {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        let mut parts = text.splitn(3, ':');
        let (name, password) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        let groups = parts.next().unwrap_or_default().split(',');
        let groups: Vec<_> = groups.filter(|group| !group.is_empty()).collect();
        let said = !name.is_empty() && !password.is_empty();
        Ok(Self(said.then(|| eventstore::User::new(name, password, &groups))))
    }
}

/// Where the stores keep what they are given.
#[derive(Clone, Debug, Default, clap::Args)]
pub(super) struct StackPlace {
    /// Keep everything in this folder, over restarts and crashes.
    #[arg(long, value_name = "DIR", conflicts_with = "in_memory")]
    data_dir: Option<PathBuf>,
    /// Keep everything in memory; the default.
    #[arg(long)]
    in_memory: bool,
}

impl StackPlace {
    /// For people.
    pub(super) fn shown(&self) -> String {
        self.data_dir
            .as_ref()
            .map_or("in memory".to_owned(), |dir| format!("kept in {}", dir.display()))
    }
}

/// Both servers while they run.
pub(super) struct Both {
    eventstore: eventstore::Handle,
    dynamodb: dynamodb::DynamoDbHandle,
}

/// How both are started.
#[derive(Clone, Debug, Default)]
pub(super) struct StackOptions {
    pub(super) place: StackPlace,
    pub(super) eventstore_port: u16,
    pub(super) dynamodb_port: u16,
    pub(super) tls: bool,
    pub(super) users: Vec<eventstore::User>,
    pub(super) projections: Projections,
    pub(super) delay_commits: Duration,
}

impl Both {
    /// Starts both; they answer when this returns.
    pub(super) async fn start(options: &StackOptions) -> Result<Self, Failure> {
        let dir = options.place.data_dir.as_ref();
        if let Some(dir) = dir {
            std::fs::create_dir_all(dir).map_err(|error| {
                Failure::new(
                    Exit::CantCreate,
                    format!("failed to make the folder {}: {error}", dir.display()),
                )
            })?;
        }
        let eventstore = eventstore::EventStoreDb::start(eventstore::Options {
            host: Ipv4Addr::LOCALHOST.into(),
            port: options.eventstore_port,
            data: dir.map(|dir| dir.join("eventstore")),
            tls: options.tls,
            users: match options.users.as_slice() {
                [] => eventstore::Users::Open,
                users => eventstore::Users::Known(users.to_vec()),
            },
            projections: options.projections.0.clone(),
            ..eventstore::Options::default()
        });
        let eventstore = eventstore
            .await
            .map_err(|error| Failure::to(Exit::CantCreate, &error))?;
        eventstore.faults().delay_commits(None, options.delay_commits);
        let dynamodb = dynamodb::DynamoDb::start(dynamodb::Options {
            host: Ipv4Addr::LOCALHOST.into(),
            port: options.dynamodb_port,
            file: dir.map(|dir| dir.join("dynamodb.sqlite")),
        });
        let dynamodb = dynamodb.await.map_err(|error| Failure::to(Exit::CantCreate, &error))?;
        Ok(Self { eventstore, dynamodb })
    }

    /// EventStoreDB's connection string.
    pub(super) fn connection(&self) -> String {
        self.eventstore.connection_string()
    }

    /// DynamoDB's endpoint.
    pub(super) fn endpoint(&self) -> String {
        self.dynamodb.endpoint()
    }

    /// Stops both.
    pub(super) async fn stop(self) {
        self.dynamodb.shutdown().await;
        self.eventstore.shutdown().await;
    }
}

pub(super) async fn run(args: Args) -> Result<(), Failure> {
    let users: Option<Vec<_>> = args.users.into_iter().map(|user| user.0).collect();
    let options = StackOptions {
        place: args.place,
        eventstore_port: args.eventstore_port,
        dynamodb_port: args.dynamodb_port,
        tls: args.tls,
        users: users.ok_or_else(|| {
            let how = "--user is NAME:PASSWORD or NAME:PASSWORD:GROUP,GROUP with no `:` in name or password";
            Failure::new(Exit::Usage, how.to_owned())
        })?,
        projections: args.projections,
        delay_commits: args.delay_commits,
    };
    let shutdown = app::shutdown();
    let both = Both::start(&options).await?;
    out::line(format!(
        "# EventStoreDB and DynamoDB answer, {}. Ctrl-C stops both.\n\
         PROJECTOR__EVENTSTORE__CONNECTION={}\n\
         PROJECTOR__DYNAMODB__CREATE_TABLES=plain\n\
         PROJECTOR__DYNAMODB__ENDPOINT={}",
        options.place.shown(),
        both.connection(),
        both.endpoint(),
    ));
    shutdown.await;
    both.stop().await;
    out::line("# stopped");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn projections_are_none_all_or_some_by_name() {
        let said = |text| projections(text).map(|projections| projections.0);
        assert_eq!(said("none"), Ok(Vec::new()));
        assert_eq!(said("standard"), Ok(SystemProjection::ALL.to_vec()));
        let some = vec![SystemProjection::ByCategory, SystemProjection::Streams];
        assert_eq!(said("$by_category, streams,by_category"), Ok(some));
        assert!(said("$by_color").is_err_and(|error| error.contains("$by_event_type")));
        assert!(said("").is_err());
    }
}
