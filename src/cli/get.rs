//! `projector get`: one replica, and with `--fresh` the fold of its stream beside it.

use super::{Context, Exit, Failure, out};
use crate::{
    app::Connections,
    config::Planned,
    document::{
        Document,
        json::{self, Difference},
    },
    event::{RawEvent, Revision, next_after},
    journal::{Journal as _, Presence, ReadLimit},
    projection::{Fold, StoredState, folding::fold_events},
    replica::{Header, Replica, ReplicaStore as _},
};

/// Show a stream's replica
///
/// Prints the replica as JSON, read strongly consistent. With --fresh also folds the stream from
/// the event store, shows what that gives beside it, and where the two differ at the replica's
/// version; exits 1 when they do, or when there is no replica.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Args {
    /// The stream, such as loan-173688.
    stream: String,
    /// The projection; may be left out when there is one.
    #[arg(long, value_name = "NAME")]
    projection: Option<String>,
    /// Fold the stream as well, and compare.
    #[arg(long)]
    fresh: bool,
}

/// Events read at once for `--fresh`.
const READ: ReadLimit = ReadLimit {
    events: 4_096,
    bytes: 8 << 20,
};

pub(super) async fn run(args: Args, context: &Context) -> Result<(), Failure> {
    let plan = context.one(args.projection.as_deref())?;
    let connections = Connections::new(&context.settings).await?;
    let replica = connections.table(&plan, None).get(&args.stream, true).await?;
    let stored = match &replica {
        Some(replica) => Some(view_of(replica)?),
        None => None,
    };
    let mut shown = vec![
        ("stream", text(&args.stream)),
        ("projection", text(plan.fold.name())),
        ("schema", number(i128::from(plan.fold.schema()))),
        ("table", text(&plan.table)),
    ];
    if let Some(replica) = &replica {
        shown.extend(header(replica));
        shown.push(("state", stored.clone().flatten().unwrap_or_default()));
    } else {
        shown.push(("replica", Document::Null));
    }
    let mut verdict = if replica.is_some() {
        Ok(())
    } else {
        Err(Failure::new(
            Exit::No,
            format!("there is no replica of {} in {}", args.stream, plan.table),
        ))
    };
    if args.fresh {
        let fresh = fold_again(&plan, &connections, &args.stream, replica.as_ref().map(|r| &r.header)).await?;
        let compared = compare(replica.as_ref(), stored.flatten().as_ref(), &fresh);
        if matches!(&compared, Compared::Differ(_)) {
            verdict = Err(Failure::new(
                Exit::No,
                "the replica is not the fold of its stream at its version",
            ));
        }
        shown.push(("fresh", fresh_shown(&fresh)));
        shown.extend(compared.shown());
    }
    out::line(json::to_string_pretty(&object(shown)));
    verdict
}

fn text(text: &str) -> Document {
    Document::String(text.to_owned())
}

fn number(number: i128) -> Document {
    Document::Number(number.to_string().into())
}

fn version(version: Option<Revision>) -> Document {
    number(version.map_or(-1, i128::from))
}

fn object(members: Vec<(&str, Document)>) -> Document {
    Document::Map(
        members
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value))
            .collect(),
    )
}

fn view_of(replica: &Replica) -> Result<Option<Document>, Failure> {
    match &replica.view {
        None => Ok(None),
        Some(StoredState::Document(view)) => Ok(Some(view.clone())),
        Some(StoredState::Json(packed)) => {
            let view = std::str::from_utf8(packed)
                .map_err(|error| error.to_string())
                .and_then(|view| json::parse(view).map_err(|error| error.to_string()));
            view.map(Some)
                .map_err(|error| Failure::new(Exit::No, format!("failed to read the stored state: {error}")))
        }
    }
}

fn header(replica: &Replica) -> Vec<(&'static str, Document)> {
    let h = &replica.header;
    let mut shown = vec![
        ("version", version(h.version)),
        ("first", number(i128::from(h.first))),
        ("generation", number(i128::from(h.generation))),
        ("bytes", number(replica.bytes as i128)),
    ];
    if let Some(event) = &h.event {
        shown.push((
            "event",
            object(vec![
                ("id", text(&event.id.to_string())),
                ("type", text(&event.kind)),
                ("created", text(&event.at.to_rfc3339())),
            ]),
        ));
    }
    if let Some(at) = replica.projected_at {
        shown.push(("projected_at", text(&at.to_rfc3339())));
    }
    if let Some(mark) = &h.quarantine {
        shown.push((
            "quarantine",
            object(vec![
                ("at", number(i128::from(mark.at))),
                ("reason", text(&mark.reason)),
                ("by", text(&mark.by.to_string())),
            ]),
        ));
    }
    if h.deleted {
        shown.push(("deleted", Document::Bool(true)));
    }
    shown
}

/// A stream folded now.
struct Fresh {
    presence: Presence,
    first: Option<Revision>,
    version: Option<Revision>,
    state: Document,
    /// The view at the replica's version, where that can be reached from its first event.
    at_replica: Option<Document>,
    stopped: Option<String>,
}

async fn fold_again(
    plan: &Planned,
    connections: &Connections,
    stream: &str,
    replica: Option<&Header>,
) -> Result<Fresh, Failure> {
    // A replica that begins later is the fold of what follows; so is its comparison.
    let mut next = replica.map_or(0, |h| h.first);
    let wanted = replica.and_then(|h| h.version);
    let fold: &dyn Fold = &*plan.fold;
    let mut fresh = Fresh {
        presence: Presence::Present,
        first: None,
        version: None,
        state: Document::Null,
        at_replica: None,
        stopped: None,
    };
    let mut base = (Header::new(), fold.initial());
    loop {
        let slice = connections.journal.read(stream, next, READ).await?;
        fresh.presence = slice.presence;
        fresh.first = fresh.first.or(slice.events.first().map(|e| e.revision));
        let split = slice
            .events
            .iter()
            .position(|e| wanted.is_none_or(|wanted| e.revision > wanted))
            .unwrap_or(slice.events.len());
        let (below, above) = slice.events.split_at(split);
        for part in [below, above] {
            if !take(plan, &mut base, part, &mut fresh) {
                break;
            }
            if wanted.is_some() && base.0.version == wanted && fresh.first == replica.map(|h| h.first) {
                fresh.at_replica = Some(encode(fold, &base.1)?);
            }
        }
        next = slice.events.last().map_or(next, |last| next_after(Some(last.revision)));
        if slice.end || slice.presence != Presence::Present || fresh.stopped.is_some() {
            break;
        }
    }
    fresh.version = base.0.version;
    fresh.state = if base.0.version.is_some() {
        encode(fold, &base.1)?
    } else {
        Document::Null
    };
    Ok(fresh)
}

/// Folds `events` on; `false` when one of them cannot be folded.
fn take(plan: &Planned, base: &mut (Header, crate::projection::State), events: &[RawEvent], fresh: &mut Fresh) -> bool {
    if events.is_empty() {
        return true;
    }
    let folded = fold_events(&*plan.fold, (&base.0, &base.1), events, plan.tuned.commands);
    *base = (folded.header, folded.state);
    if let Some((index, error)) = folded.stopped {
        fresh.stopped = Some(format!("failed to {error} (revision {})", events[index].revision));
        return false;
    }
    true
}

fn encode(fold: &dyn Fold, state: &crate::projection::State) -> Result<Document, Failure> {
    fold.encode(state)
        .map(|encoded| encoded.view)
        .map_err(|error| Failure::to(Exit::No, &error))
}

fn fresh_shown(fresh: &Fresh) -> Document {
    let presence = match fresh.presence {
        Presence::Present => "there",
        Presence::Absent => "not there, or deleted",
        Presence::Tombstoned => "tombstoned",
    };
    let mut shown = vec![
        ("stream", text(presence)),
        ("version", version(fresh.version)),
        ("state", fresh.state.clone()),
    ];
    if let Some(stopped) = &fresh.stopped {
        shown.push(("stopped", text(stopped)));
    }
    object(shown)
}

/// A replica beside the fold of its stream.
enum Compared {
    /// The same at the replica's version.
    Same {
        /// How many events the stream is ahead.
        behind: u64,
    },
    /// Not the same.
    Differ(Vec<Difference>),
    /// What it was folded from cannot be read any more, or nothing was folded.
    Not(&'static str),
}

fn compare(replica: Option<&Replica>, stored: Option<&Document>, fresh: &Fresh) -> Compared {
    let Some(replica) = replica else {
        return Compared::Not("there is no replica");
    };
    let Some(version) = replica.header.version else {
        return Compared::Not("nothing is folded into the replica yet");
    };
    let Some(stored) = stored else {
        return Compared::Not("the replica keeps no state: its stream is deleted");
    };
    let Some(at_replica) = &fresh.at_replica else {
        return Compared::Not("the events that the replica was folded from cannot all be read or folded");
    };
    let differences = json::diff(stored, at_replica);
    if differences.is_empty() {
        Compared::Same {
            behind: fresh.version.unwrap_or(version).saturating_sub(version),
        }
    } else {
        Compared::Differ(differences)
    }
}

impl Compared {
    fn shown(&self) -> Vec<(&'static str, Document)> {
        match self {
            Self::Same { behind } => vec![
                ("same_at_version", Document::Bool(true)),
                ("behind", number(i128::from(*behind))),
            ],
            Self::Differ(differences) => {
                let shown = differences.iter().map(|d| {
                    let side = |side: &Option<Document>| side.clone().unwrap_or_default();
                    object(vec![
                        ("path", text(&d.path)),
                        ("replica", side(&d.left)),
                        ("fresh", side(&d.right)),
                    ])
                });
                vec![
                    ("same_at_version", Document::Bool(false)),
                    ("differences", Document::List(shown.collect())),
                ]
            }
            Self::Not(why) => vec![("not_compared", text(why))],
        }
    }
}
