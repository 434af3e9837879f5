//! `projector redrive`: tries a quarantined stream again, or folds one again from its start.
//!
//! Writes nothing by itself that a lane would not: the mark is tried by a lane as other code would
//! try it, so I2 monotonic holds against every task that runs beside it.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::{Context, Exit, Failure, out};
use crate::{
    app::{Connections, lane_rules},
    config::Planned,
    event::{RawEvent, Revision},
    journal::{Journal, Standing},
    projection::{Change, Encoded, Fold, FoldError, Source, State, StateError, StoredState},
    projector::{
        effects::Stores,
        lane::{Arrival, Lane, LaneRules, Next},
        meter::NoMeter,
    },
    replica::{Demand, Header, Put, PutOutcome, Quarantine, ReplicaStore, StoreError, item::Body},
};

/// Try a quarantined stream again, and clear its mark when it can be folded now
///
/// A stream that is not quarantined and whose replica is behind is folded on.
///
/// Folds on from the replica's last good version with this binary's code. With --from-start the
/// replica is thrown away and the stream folded again: the remedy for a diverged replica, after
/// making sure that the event store is the right one. Exits 1 when the stream is still quarantined.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Args {
    /// The stream, such as loan-173688.
    stream: String,
    /// The projection; may be left out when there is one.
    #[arg(long, value_name = "NAME")]
    projection: Option<String>,
    /// Fold from the stream's first readable event instead of from the replica.
    #[arg(long)]
    from_start: bool,
    /// Give up after so many seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    timeout: u64,
}

/// Others may write between; more often than this in a row it is not a coincidence.
const ATTEMPTS: usize = 10;

pub(super) async fn run(args: Args, context: &Context) -> Result<(), Failure> {
    let plan = context.one(args.projection.as_deref())?;
    let connections = Connections::new(&context.settings).await?;
    // Both stores are there, or it is said now rather than waited for.
    connections.journal.connect().await?;
    let table = connections.table(&plan, None);
    let stream: Arc<str> = args.stream.as_str().into();
    // What is there, and what an administrative write on it demands.
    let (mark, stands, version) = match table.get(&stream, true).await {
        Ok(Some(replica)) => (
            replica.header.quarantine.clone(),
            stands(&replica.header),
            replica.header.version,
        ),
        Ok(None) => {
            return Err(Failure::new(
                Exit::No,
                format!("there is no replica of {stream} in {}", plan.table),
            ));
        }
        Err(StoreError::Corrupt { found, .. }) if args.from_start => (None, (found.demand(), found.generation), None),
        Err(error) => return Err(error.into()),
    };
    // What changed nothing is stored later than it was settled, and a process that is killed in
    // between leaves its replica behind with nobody to see to it.
    let newest = match connections.journal.look(&stream).await? {
        Standing::Live(newest) => newest.map(|newest| newest.revision),
        Standing::Missing | Standing::SoftDeleted | Standing::Tombstoned => None,
    };
    if !args.from_start {
        match &mark {
            None if newest <= version => {
                out::line(format!("{stream} is not quarantined and up to date; nothing to do"));
                return Ok(());
            }
            Some(mark) if mark.is_diverged() => {
                return Err(Failure::new(
                    Exit::No,
                    format!(
                        "{stream}: {}; check that the event store is the right one, then add --from-start",
                        mark.reason
                    ),
                ));
            }
            None | Some(_) => {}
        }
    }
    let stores = Stores::new(connections.journal.clone(), table.clone(), Arc::new(NoMeter));
    let limit = Duration::from_secs(args.timeout);
    let work = async {
        if args.from_start {
            empty(&table, &stream, stands).await?;
        }
        drive(&plan, &stores, &stream, newest).await;
        Ok::<_, Failure>(())
    };
    tokio::time::timeout(limit, work).await.unwrap_or_else(|_| {
        let trouble = [stores.journal_trouble.last(), stores.table_trouble.last()];
        let trouble: Vec<_> = trouble.into_iter().flatten().collect();
        Err(Failure::new(
            Exit::Unavailable,
            format!("failed to finish within {limit:?}: {}", trouble.join("; ")),
        ))
    })?;
    let now = table.get(&stream, true).await?.map(|replica| replica.header);
    if let Some(mark) = now.as_ref().and_then(|header| header.quarantine.as_ref()) {
        return Err(Failure::new(
            Exit::No,
            format!("{stream} is still quarantined: {}", mark.reason),
        ));
    }
    table.forget_mark(&stream, u64::MAX).await?;
    let version = now.and_then(|header| header.version);
    out::line(format!(
        "{stream} is folded up to {}",
        version.map_or("nothing: none of its events can be read".to_owned(), |v| format!(
            "revision {v}"
        ))
    ));
    Ok(())
}

/// What an administrative write demands, and the generation that it raises, where there is one.
type Stands = (Demand, Option<u64>);

fn stands(header: &Header) -> Stands {
    let demand = Demand::Exactly {
        generation: header.generation,
        version: header.version,
        deleted: header.deleted,
    };
    (demand, Some(header.generation))
}

/// Replaces the replica by an empty one under a mark that names no build. Every build tries such a mark, and
/// readers see that the replica is being folded again.
///
/// An item that cannot be read is replaced by what can be: where its generation is lost, the clock's
/// milliseconds stand above any count of administrative writes.
async fn empty<S: ReplicaStore>(table: &S, stream: &Arc<str>, mut stands: Stands) -> Result<(), Failure> {
    let mark = Quarantine::emptied();
    for _ in 0..ATTEMPTS {
        let (demand, generation) = stands;
        let generation = generation.unwrap_or_else(|| chrono::Utc::now().timestamp_millis().unsigned_abs()) + 1;
        table.note_mark(stream, &mark, generation).await?;
        let header = Header {
            generation,
            quarantine: Some(mark.clone()),
            ..Header::new()
        };
        let put = Put {
            stream: stream.clone(),
            header,
            body: Body::Nothing,
            demand,
        };
        match table.put(&put).await {
            Ok(PutOutcome::Done) => return Ok(()),
            Ok(PutOutcome::Refused(Some(now))) => stands = self::stands(&now.header),
            Err(StoreError::Corrupt { found, .. }) => stands = (found.demand(), found.generation),
            Err(error) => return Err(error.into()),
            Ok(PutOutcome::Refused(None)) => {
                return Err(Failure::new(
                    Exit::No,
                    format!("the replica of {stream} was deleted meanwhile"),
                ));
            }
        }
    }
    Err(Failure::new(
        Exit::No,
        format!("the replica of {stream} keeps changing; try again"),
    ))
}

/// Runs one lane for the stream until it has nothing left to do.
async fn drive<J: Journal, S: ReplicaStore>(
    plan: &Planned,
    stores: &Stores<J, S>,
    stream: &Arc<str>,
    newest: Option<Revision>,
) {
    let fold = Arc::new(Again {
        inner: plan.fold.clone(),
        fingerprint: format!("{} redriven {}", plan.fold.fingerprint(), uuid::Uuid::new_v4()),
    });
    let rules = LaneRules {
        // Nobody waits here for more events to come.
        keep_flush: Duration::ZERO,
        ..lane_rules(plan, fold)
    };
    let mut lane = Lane::new(stream.clone(), Arc::new(rules));
    let epoch = Instant::now();
    lane.deliver(1, Arrival::Noted { generation: 0 }, false);
    if let Some(newest) = newest {
        lane.deliver(2, Arrival::Revision(newest, chrono::DateTime::UNIX_EPOCH), false);
    }
    loop {
        // The deliveries are its own: there is nobody to tell a verdict.
        match lane.step(epoch.elapsed()).next {
            Next::Do(effect) => {
                let outcome = stores.carry_out(stream, effect).await;
                lane.apply(outcome, epoch.elapsed());
            }
            // All is stored that was found; what still waits is the note, which goes with the command.
            Next::WaitUntil(_) if lane.unsettled() == 0 => break,
            Next::WaitUntil(at) => tokio::time::sleep_until((epoch + at).into()).await,
            // Nothing is under way here, or held back: every effect was waited for.
            Next::Busy | Next::HeldBack | Next::Idle => break,
        }
    }
}

/// The fold under a fingerprint of its own, so that a mark left by the same code is tried again.
struct Again {
    inner: Arc<dyn Fold>,
    fingerprint: String,
}

impl Fold for Again {
    fn name(&self) -> &str {
        self.inner.name()
    }
    fn schema(&self) -> u32 {
        self.inner.schema()
    }
    fn source(&self) -> Source {
        self.inner.source()
    }
    fn fingerprint(&self) -> &str {
        &self.fingerprint
    }
    fn keeps_commands(&self) -> bool {
        self.inner.keeps_commands()
    }
    fn initial(&self) -> State {
        self.inner.initial()
    }
    fn apply(&self, state: &mut State, event: &RawEvent) -> Result<Change, FoldError> {
        self.inner.apply(state, event)
    }
    fn encode(&self, state: &State) -> Result<Encoded, FoldError> {
        self.inner.encode(state)
    }
    fn decode(&self, view: &StoredState, fold: Option<&StoredState>) -> Result<State, StateError> {
        self.inner.decode(view, fold)
    }
}
