//! The item's layout, and the checks that decide before a put whether a state can be stored.
//!
//! Invariant: I1 prefix: a state is stored exactly or refused with the path that is to blame. What is
//! refused here is poison of one aggregate; DynamoDB's own refusal would stop a whole projection,
//! so everything that it can refuse because of a state is looked at here first.

use std::sync::Arc;

use crate::{
    document::{Document, json},
    projection::{Encoded, FoldError, Projection, StateError, StoredState},
};

use super::{Header, Quarantine, Replica};

pub(crate) mod number;
mod promoted;
pub(crate) mod size;

pub use promoted::{Key, KeyKind, Promoted, PromotedError, Promotions};

/// Names of the item's attributes: what readers in other languages see.
pub mod attribute {
    /// S: the stream's name, the partition key. Names that begin with `$` are reserved.
    pub const KEY: &str = "pk";
    /// S: the projection's name.
    pub const PROJECTION: &str = "projection";
    /// N: the projection's schema.
    pub const SCHEMA: &str = "schema";
    /// N: the revision of the last event folded in, −1 for none.
    pub const VERSION: &str = "version";
    /// N: the revision of the first event folded in.
    pub const FIRST: &str = "first";
    /// N: administrative writes so far.
    pub const GENERATION: &str = "generation";
    /// M: the view.
    pub const STATE: &str = "state";
    /// M: what is folded on, only where a transform makes the view differ.
    pub const FOLD: &str = "fold";
    /// B: zstd of the view's JSON, instead of `state`.
    pub const STATE_ZSTD: &str = "state_zstd";
    /// B: zstd of the fold's JSON, instead of `fold`.
    pub const FOLD_ZSTD: &str = "fold_zstd";
    /// S: the id of the last event folded in.
    pub const EVENT_ID: &str = "event_id";
    /// S: its type.
    pub const EVENT_TYPE: &str = "event_type";
    /// S: when it was written, RFC 3339 with milliseconds.
    pub const EVENT_AT: &str = "event_at";
    /// S: when the replica was put, RFC 3339 with milliseconds.
    pub const PROJECTED_AT: &str = "projected_at";
    /// L of M with [`COMMAND_ID`], [`COMMAND_FIRST`], [`COMMAND_LAST`], oldest first.
    pub const COMMANDS: &str = "commands";
    /// S, in a command: its id.
    pub const COMMAND_ID: &str = "id";
    /// N, in a command: the revision of its first event.
    pub const COMMAND_FIRST: &str = "first";
    /// N, in a command: the revision of its last event.
    pub const COMMAND_LAST: &str = "last";
    /// S in [`COMMANDS`]: the command's name, if it has one.
    pub const COMMAND_NAME: &str = "name";
    /// S in [`COMMANDS`]: the caller's fingerprint of its request, if it gave one.
    pub const COMMAND_FINGERPRINT: &str = "fingerprint";
    /// N, in a command: when that was written, in milliseconds since 1970.
    pub const COMMAND_AT: &str = "at";
    /// N: every command that landed after this time, in milliseconds since 1970, is among
    /// [`COMMANDS`]; absent where that is only known of those after the last event.
    pub const COMMANDS_SINCE: &str = "commands_since";
    /// N: the revision of the event that cannot be folded, only while quarantined.
    pub const QUARANTINED_AT: &str = "quarantined_at";
    /// S: why.
    pub const QUARANTINE_REASON: &str = "quarantine_reason";
    /// S: the fingerprint of the code that could not, last.
    pub const QUARANTINED_BY: &str = "quarantined_by";
    /// L of S: the fingerprints of the code that could not before it, oldest first.
    pub const QUARANTINED_ALSO_BY: &str = "quarantined_also_by";
    /// BOOL true, only while the stream is deleted.
    pub const DELETED: &str = "deleted";

    /// All of them that stand at the item's top: no promoted attribute may have such a name.
    pub const ALL: [&str; 21] = [
        KEY,
        PROJECTION,
        SCHEMA,
        VERSION,
        FIRST,
        GENERATION,
        STATE,
        FOLD,
        STATE_ZSTD,
        FOLD_ZSTD,
        EVENT_ID,
        EVENT_TYPE,
        EVENT_AT,
        PROJECTED_AT,
        COMMANDS,
        COMMANDS_SINCE,
        QUARANTINED_AT,
        QUARANTINE_REASON,
        QUARANTINED_BY,
        QUARANTINED_ALSO_BY,
        DELETED,
    ];
}

/// DynamoDB's limit on an item, names included ("Quotas": 400 KB of 1,024 bytes).
pub const ITEM_LIMIT: usize = 400 * 1024;
/// DynamoDB's limit on a partition key ("Quotas").
const KEY_LIMIT: usize = 2048;
/// The text of a mark is cut here: it is for people, and a mark must fit on every item.
pub const REASON_LIMIT: usize = 1024;
/// Always left free, so that a mark (its reason, its fingerprint, the names) and the flag of a
/// deleted stream fit on an item that was full before.
const MARK_ROOM: usize = REASON_LIMIT + 1024;
/// A plain integer of 20 digits and its minus sign, at most.
const INTEGER: usize = 12;
/// An RFC 3339 time with milliseconds.
const TIME: usize = 24;
/// A UUID with hyphens.
const ID: usize = 36;
/// Reading JSON back stops at 128 levels (`serde_json`'s own guard); a state deeper than this would
/// be written and never read.
const MAX_DEPTH: usize = 120;
/// zstd's default level: the knee of its curve; higher ones cost more time than they save units.
const ZSTD_LEVEL: i32 = 3;
/// A compressed state may unpack to this many bytes: 400 KB of zstd can claim far more than a
/// process has, and no state that we wrote came near.
const UNPACKED_LIMIT: u64 = 256 * 1024 * 1024;

/// How states of one projection are stored.
#[derive(Clone, Debug)]
pub struct Rules {
    /// The projection's name. Every item has it.
    pub projection: Arc<str>,
    /// A native map of more bytes than this is stored compressed instead.
    pub compress_above: usize,
    /// Bytes an item may have.
    pub item_limit: usize,
    /// Fields of the view that are attributes of their own, for indexes.
    pub promoted: Vec<Promoted>,
}

impl Rules {
    /// Those of `P`: native maps as long as they fit, nothing promoted.
    pub fn of<P: Projection>() -> Self {
        Self::new(P::NAME)
    }

    /// Native maps as long as they fit, nothing promoted.
    pub fn new(projection: impl Into<Arc<str>>) -> Self {
        Self {
            projection: projection.into(),
            compress_above: ITEM_LIMIT,
            item_limit: ITEM_LIMIT,
            promoted: Vec::new(),
        }
    }
}

/// A state in the form in which it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// None is kept.
    Nothing,
    /// What is stored stays as it is, byte for byte: the mark, the flag of a deletion and the
    /// generation are all that is written. The header is the stored one but for those.
    Stored,
    /// Native maps: the view, and the fold where it differs.
    Native {
        /// For readers.
        view: Document,
        /// For folding on.
        fold: Option<Document>,
        /// Size in bytes by DynamoDB's rules.
        bytes: usize,
        /// Fields of the view that are attributes of their own.
        promoted: Promotions,
    },
    /// Compressed JSON of the view, and of the fold where it differs.
    Compressed {
        /// zstd of the view's JSON.
        view: Vec<u8>,
        /// zstd of the fold's JSON.
        fold: Option<Vec<u8>>,
        /// Size in bytes of the JSON of both: what they take when unpacked.
        bytes: usize,
        /// Fields of the view that are attributes of their own.
        promoted: Promotions,
    },
}

impl Body {
    /// The promoted attributes; none of a body without a state.
    pub fn promoted(&self) -> Option<&Promotions> {
        match self {
            Self::Nothing | Self::Stored => None,
            Self::Native { promoted, .. } | Self::Compressed { promoted, .. } => Some(promoted),
        }
    }

    /// About what the state takes in memory: what a cache weighs it by.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Nothing | Self::Stored => 0,
            Self::Native { bytes, .. } | Self::Compressed { bytes, .. } => *bytes,
        }
    }

    /// What a store gives back of this body: its view and its fold; of [`Self::Stored`] nothing, for
    /// it is the store's to know.
    pub fn stored(&self) -> Result<(Option<StoredState>, Option<StoredState>), StateError> {
        Ok(match self {
            Self::Nothing | Self::Stored => (None, None),
            Self::Native { view, fold, .. } => (
                Some(StoredState::Document(view.clone())),
                fold.clone().map(StoredState::Document),
            ),
            Self::Compressed { view, fold, .. } => (
                Some(StoredState::Json(unpack(view)?)),
                fold.as_deref().map(unpack).transpose()?.map(StoredState::Json),
            ),
        })
    }
}

/// Refuses a stream whose name cannot be an item's key.
pub fn check_key(stream: &str) -> Result<(), FoldError> {
    let problem = if stream.is_empty() {
        "the stream has no name".to_owned()
    } else if stream.starts_with('$') {
        format!(
            "the stream's name `{stream}` begins with `$`; such keys are reserved in a replica table, so system streams have no replicas"
        )
    } else if stream.len() > KEY_LIMIT {
        let shown: String = stream.chars().take(40).collect();
        format!(
            "the stream's name `{shown}…` has {} bytes and an item's key at most {KEY_LIMIT}; leave the stream out by the source's filter",
            stream.len()
        )
    } else {
        return Ok(());
    };
    Err(FoldError::Unstorable(problem))
}

/// Brings a state into the form in which it is stored with `header` under `stream`: a native map;
/// compressed JSON where a map cannot hold it exactly, does not fit, or is larger than the rules
/// want; an error that names the part to blame when neither fits.
pub fn prepare(encoded: Encoded, rules: &Rules, stream: &str, header: &Header) -> Result<Body, FoldError> {
    check_key(stream)?;
    let Encoded { view, fold } = encoded;
    let states = || std::iter::once(&view).chain(&fold);
    if states().any(|state| size::depth(state) > MAX_DEPTH) {
        return Err(FoldError::Unstorable(format!(
            "it is nested deeper than {MAX_DEPTH} levels; flatten it in the projection"
        )));
    }
    let promoted = promoted::promote(&view, &rules.promoted);
    let overhead = header_bytes(header, stream, &rules.projection) + promoted.bytes();
    let room = rules.item_limit.saturating_sub(overhead);

    let native = native_bytes(&view, fold.as_ref());
    if native <= room.min(rules.compress_above) && states().all(size::is_native) {
        return Ok(Body::Native {
            view,
            fold,
            bytes: native,
            promoted,
        });
    }
    let (packed_view, json_view) = pack(&view)?;
    let (packed_fold, json_fold) = match &fold {
        Some(fold) => pack(fold).map(|(packed, json)| (Some(packed), json))?,
        None => (None, 0),
    };
    let packed = packed_bytes(&packed_view, packed_fold.as_deref());
    if packed > room {
        // Small maps do not gain by compression; a setting for it must not refuse what fits.
        if native <= room && states().all(size::is_native) {
            return Ok(Body::Native {
                view,
                fold,
                bytes: native,
                promoted,
            });
        }
        let (path, bytes) = size::largest(&view);
        return Err(FoldError::Unstorable(format!(
            "it takes {native} bytes as a map and {packed} as compressed JSON, and of the {} bytes of an item {room} are left for it; the largest part is `{path}` with {bytes} bytes: keep less of it in the projection",
            rules.item_limit,
        )));
    }
    Ok(Body::Compressed {
        view: packed_view,
        fold: packed_fold,
        bytes: json_view + json_fold,
        promoted,
    })
}

/// The body of a replica as it is stored, to be put again unchanged under another header (a mark,
/// its clearing, a deletion that keeps the state).
pub fn restore(replica: &Replica, rules: &Rules) -> Result<Body, StateError> {
    let Some(view) = &replica.view else {
        return Ok(Body::Nothing);
    };
    let promoted = match view {
        StoredState::Document(view) => promoted::promote(view, &rules.promoted),
        StoredState::Json(_) if rules.promoted.is_empty() => Promotions::default(),
        StoredState::Json(text) => promoted::promote(&parse(text)?, &rules.promoted),
    };
    match (view, &replica.fold) {
        (StoredState::Document(view), None | Some(StoredState::Document(_))) => {
            let fold = match &replica.fold {
                Some(StoredState::Document(fold)) => Some(fold.clone()),
                _ => None,
            };
            Ok(Body::Native {
                bytes: native_bytes(view, fold.as_ref()),
                view: view.clone(),
                fold,
                promoted,
            })
        }
        (view, fold) => {
            let text = |state: &StoredState| match state {
                StoredState::Json(text) => text.clone(),
                StoredState::Document(document) => json::to_string(document).into_bytes(),
            };
            let view = text(view);
            let fold = fold.as_ref().map(text);
            let bytes = view.len() + fold.as_ref().map_or(0, Vec::len);
            let squeeze = |text: &[u8]| compress(text).map_err(|e| StateError(e.to_string()));
            Ok(Body::Compressed {
                view: squeeze(&view)?,
                fold: fold.as_deref().map(squeeze).transpose()?,
                bytes,
                promoted,
            })
        }
    }
}

fn native_bytes(view: &Document, fold: Option<&Document>) -> usize {
    attribute::STATE.len() + size::of(view) + fold.map_or(0, |fold| attribute::FOLD.len() + size::of(fold))
}

fn packed_bytes(view: &[u8], fold: Option<&[u8]>) -> usize {
    attribute::STATE_ZSTD.len() + view.len() + fold.map_or(0, |fold| attribute::FOLD_ZSTD.len() + fold.len())
}

/// What all but the state takes, with room left for a mark.
fn header_bytes(header: &Header, stream: &str, projection: &str) -> usize {
    use attribute as a;
    /// A map of four pairs in a list.
    const COMMAND: usize = 5
        + 3
        + a::COMMAND_ID.len()
        + ID
        + a::COMMAND_FIRST.len()
        + INTEGER
        + a::COMMAND_LAST.len()
        + INTEGER
        + a::COMMAND_AT.len()
        + INTEGER;
    let event = header.event.as_ref().map_or(0, |event| {
        a::EVENT_ID.len() + ID + a::EVENT_TYPE.len() + event.kind.len() + a::EVENT_AT.len() + TIME
    });
    let sorts = header.commands.iter().map(|landed| {
        let part =
            |name: &str, text: &Option<std::sync::Arc<str>>| text.as_ref().map_or(0, |t| 2 + name.len() + t.len());
        part(a::COMMAND_NAME, &landed.sort.name) + part(a::COMMAND_FINGERPRINT, &landed.sort.fingerprint)
    });
    let commands = a::COMMANDS.len()
        + a::COMMANDS_SINCE.len()
        + INTEGER
        + 3
        + header.commands.len() * COMMAND
        + sorts.sum::<usize>();
    let fixed = a::KEY.len()
        + a::PROJECTION.len()
        + projection.len()
        + a::SCHEMA.len()
        + a::VERSION.len()
        + a::FIRST.len()
        + a::GENERATION.len()
        + 4 * INTEGER
        + a::PROJECTED_AT.len()
        + TIME;
    let by = header.quarantine.as_ref().map_or(0, |mark| mark.by.newest().len());
    stream.len() + fixed + event + commands + by + MARK_ROOM
}

/// A mark's reason as it is stored: cut at [`REASON_LIMIT`] bytes.
pub fn reason(mark: &Quarantine) -> &str {
    &mark.reason[..mark.reason.floor_char_boundary(REASON_LIMIT)]
}

fn pack(state: &Document) -> Result<(Vec<u8>, usize), FoldError> {
    let text = json::to_string(state);
    let packed = compress(text.as_bytes()).map_err(|e| FoldError::Unstorable(e.to_string()))?;
    Ok((packed, text.len()))
}

fn compress(text: &[u8]) -> std::io::Result<Vec<u8>> {
    zstd::bulk::compress(text, ZSTD_LEVEL)
}

/// The JSON text of a compressed state.
pub fn unpack(packed: &[u8]) -> Result<Vec<u8>, StateError> {
    use std::io::Read;
    let mut text = Vec::new();
    let unpacked = zstd::stream::read::Decoder::new(packed)
        .and_then(|decoder| decoder.take(UNPACKED_LIMIT + 1).read_to_end(&mut text));
    match unpacked {
        Err(e) => Err(StateError(format!("unpack it: {e}"))),
        Ok(_) if text.len() as u64 > UNPACKED_LIMIT => Err(StateError(format!(
            "unpack it: it has more than {UNPACKED_LIMIT} bytes"
        ))),
        Ok(_) => Ok(text),
    }
}

fn parse(text: &[u8]) -> Result<Document, StateError> {
    let text = std::str::from_utf8(text).map_err(|e| StateError(e.to_string()))?;
    json::parse(text).map_err(|e| StateError(e.to_string()))
}

#[cfg(test)]
mod tests;
