//! Projections: named folds over one source, and their type-erased form that the engine runs.
//!
//! Invariant: I6 pure: everything here is synchronous and pure.

use std::{
    any::Any,
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use serde::{Serialize, de::DeserializeOwned};

use crate::{
    aggregate::Aggregate,
    document::{Document, de, discreet, ser, whole::TypedFloats},
    event::{
        Event, RawEvent, Recorded,
        codec::{self, EventError},
    },
    panics,
    replica::item::{number::as_read_back, size},
};

#[doc(hidden)]
pub mod folding;
mod merge;
mod registry;
mod source;

pub use merge::MergePatch;
pub use registry::{Registry, RegistryError};
pub use source::{Filter, Source, SourceError};

/// What an event did to a view.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Nothing: no write is owed.
    Keep,
    /// The view changed.
    Put,
    /// The event cannot be true, or not be told, and must not pass: the stream is quarantined with
    /// this reason, the replica stays as it was before the event, and every other stream goes on:
    /// up to `quarantine_limit` refusals within a minute (20 by default), beyond which the projection
    /// stops before it marks more, for that many speak of a fault in the code.
    Refuse(String),
}

impl Change {
    /// Refuses the event for this reason: an error of your own, or a text.
    pub fn refuse(reason: impl fmt::Display) -> Self {
        Self::Refuse(reason.to_string())
    }
}

/// For folds of your own that return a result: `fold(view, event).into()`.
impl<E: fmt::Display> From<Result<Change, E>> for Change {
    fn from(folded: Result<Change, E>) -> Self {
        folded.unwrap_or_else(Self::refuse)
    }
}

/// What to do when history below the first readable revision is gone and no replica covers it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnLostHistory {
    /// Start at the first readable revision; `first` says so.
    #[default]
    Partial,
    /// Quarantine the aggregate.
    Quarantine,
}

impl OnLostHistory {
    /// Whether folding goes on behind what is lost: for the daemon, commands and queries alike.
    pub(crate) fn goes_on(self) -> bool {
        match self {
            Self::Partial => true,
            Self::Quarantine => false,
        }
    }
}

/// What to do with the replica of a deleted stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnDeletion {
    /// Keep the state for readers, marked as deleted.
    Keep,
    /// Drop the state. A marker stays, so that nothing late resurrects it.
    Remove,
}

/// How a replica goes on when its deleted stream comes to life again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnRevival {
    /// Fold on.
    Continue,
    /// Start over from the first readable event.
    Restart,
}

/// A named fold of a stream's events into a view.
pub trait Projection: Send + Sync + 'static {
    /// Lower-case name: part of the table's and the group's name and the metrics' label.
    const NAME: &'static str;
    /// Raised when the fold or the view's shape changes.
    const SCHEMA: u32 = 1;
    /// Opt-in: the revision of the fold's code, raised whenever it may fold an event differently or
    /// read a state that it could not read. Quarantine marks are then tried again by another revision
    /// and not by every other executable. `None`: the executable stands for the code.
    const REVISION: Option<u32> = None;
    /// The events that it understands.
    type Event: Event;
    /// The replica's state.
    type View: Default + Clone + Serialize + DeserializeOwned + Send + Sync + 'static;

    /// Folds one event into the view. Synchronous and pure. What cannot be folded is refused:
    /// [`Change::refuse`].
    fn project(view: &mut Self::View, event: Recorded<Self::Event>) -> Change;

    /// Where its events come from unless the settings say otherwise: the category of its name.
    fn source() -> Source {
        Source::Category(Self::NAME.into())
    }

    /// The stream of the aggregate `id`: by the source's category; where the source is none, `id` is
    /// the stream's whole name.
    fn stream_of(id: &str) -> String {
        match Self::source() {
            Source::Category(category) => format!("{category}-{id}"),
            Source::Stream(_) | Source::All(_) => id.to_owned(),
        }
    }

    /// Whether replicas keep the last command ids (aggregates do).
    fn keeps_commands() -> bool {
        false
    }

    /// Whether an event may change nothing (aggregates change with each). A replica's version is
    /// stored later then than its event was settled, and readers that wait for it look into the stream.
    fn may_keep() -> bool {
        true
    }
}

impl<A: Aggregate> Projection for A {
    const NAME: &'static str = A::CATEGORY;
    const SCHEMA: u32 = A::SCHEMA;
    const REVISION: Option<u32> = A::REVISION;
    type Event = A::Event;
    type View = A;

    fn project(view: &mut A, event: Recorded<A::Event>) -> Change {
        view.apply(event.event);
        Change::Put
    }

    fn stream_of(id: &str) -> String {
        A::stream(id)
    }

    fn keeps_commands() -> bool {
        true
    }

    fn may_keep() -> bool {
        false
    }
}

/// A view whose type only its fold knows.
pub struct State(Box<dyn AnyState>);

trait AnyState: Any + Send + Sync {
    fn clone_box(&self) -> Box<dyn AnyState>;
    fn as_any(&self) -> &dyn Any;
    fn as_any_mut(&mut self) -> &mut dyn Any;
    fn into_any(self: Box<Self>) -> Box<dyn Any>;
}

impl<T: Any + Clone + Send + Sync> AnyState for T {
    fn clone_box(&self) -> Box<dyn AnyState> {
        Box::new(self.clone())
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
    fn as_any_mut(&mut self) -> &mut dyn Any {
        self
    }
    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

impl State {
    /// Wraps a view.
    pub fn new<T: Clone + Send + Sync + 'static>(view: T) -> Self {
        Self(Box::new(view))
    }

    /// The view, when it is a `T`.
    pub fn get<T: 'static>(&self) -> Option<&T> {
        (*self.0).as_any().downcast_ref()
    }

    /// The view itself, when it is a `T`.
    pub fn into_view<T: 'static>(self) -> Option<T> {
        self.0.into_any().downcast().ok().map(|view| *view)
    }

    /// The view to change, when it is a `T`.
    pub fn get_mut<T: 'static>(&mut self) -> Option<&mut T> {
        (*self.0).as_any_mut().downcast_mut()
    }
}

impl Clone for State {
    fn clone(&self) -> Self {
        Self((*self.0).clone_box())
    }
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("State(..)")
    }
}

/// Why an event could not be folded: always the event's or the fold's fault, never a store's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FoldError {
    /// The event's body does not decode as the projection's event type.
    #[error("decode the event's body: {0}")]
    Decode(String),
    /// The event type is none that the projection knows, and it has no catch-all.
    #[error("find the event type `{0}` among the projection's events")]
    UnknownKind(String),
    /// The fold panicked. The state handed to it may be half changed and must be thrown away.
    #[error("fold the event, the projection's code panicked: {0}")]
    Panicked(String),
    /// The projection refused the event ([`Change::Refuse`]), which may have changed the state half.
    #[error("fold the event, the projection refuses it: {0}")]
    Refused(String),
    /// A fold whose code is only known at run time refused the event.
    #[error("fold the event: {0}")]
    Failed(String),
    /// The folded state cannot be stored as it is; names the path in the state.
    #[error("store the state: {0}")]
    Unstorable(String),
}

impl From<EventError> for FoldError {
    fn from(error: EventError) -> Self {
        match error {
            EventError::Decode(text) => Self::Decode(text),
            EventError::UnknownKind(kind) => Self::UnknownKind(kind),
            EventError::Unstorable(text) => Self::Unstorable(text),
        }
    }
}

impl FoldError {
    /// A word for metrics and marks.
    pub fn class(&self) -> &'static str {
        match self {
            Self::Decode(_) => "decode",
            Self::UnknownKind(_) => "unknown_kind",
            Self::Panicked(_) => "panic",
            Self::Refused(_) => "refused",
            Self::Failed(_) => "fold",
            Self::Unstorable(_) => "unstorable",
        }
    }
}

/// A stored state as a table gives it back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoredState {
    /// A native map.
    Document(Document),
    /// JSON text (it was stored compressed).
    Json(Vec<u8>),
}

impl StoredState {
    /// The state as a `T`.
    ///
    /// # Errors
    ///
    /// When it is another type's.
    pub fn read<T: DeserializeOwned>(&self) -> Result<T, StateError> {
        match self {
            Self::Document(document) => de::from_document(document).map_err(|e| StateError(e.to_string())),
            Self::Json(text) => serde_json::from_slice(text).map_err(|e| StateError(discreet::told(&e))),
        }
    }
}

/// A stored state that its projection's code cannot read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("read the stored state as the projection's view (raise its SCHEMA when the shape changed): {0}")]
pub struct StateError(pub String);

/// What of a view is stored: the view that readers see, and the untransformed state where they differ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encoded {
    /// For readers.
    pub view: Document,
    /// For folding on, only where a transform makes the view differ.
    pub fold: Option<Document>,
}

/// A projection with its types erased: what the engine, the queries and the command line run.
pub trait Fold: Send + Sync {
    /// Its name.
    fn name(&self) -> &str;
    /// Its schema.
    fn schema(&self) -> u32;
    /// Where its events come from unless the settings say otherwise.
    fn source(&self) -> Source;
    /// Tells builds of the fold apart: a quarantine mark left by another fingerprint is tried again.
    fn fingerprint(&self) -> &str;
    /// Whether replicas keep the last command ids.
    fn keeps_commands(&self) -> bool;
    /// Whether an event may change nothing.
    fn may_keep(&self) -> bool {
        true
    }
    /// The view before any event.
    fn initial(&self) -> State;
    /// Folds one event; never [`Change::Refuse`]. After [`FoldError::Panicked`],
    /// [`FoldError::Refused`] and [`FoldError::Failed`] the state is to be thrown away; after every other error it is as before.
    fn apply(&self, state: &mut State, event: &RawEvent) -> Result<Change, FoldError>;
    /// The view as data.
    fn encode(&self, state: &State) -> Result<Encoded, FoldError>;
    /// A stored state as the view. `fold` is what was stored beside the view, if anything.
    fn decode(&self, view: &StoredState, fold: Option<&StoredState>) -> Result<State, StateError>;
    /// About what a state takes in memory, in bytes: what a cache weighs it by. By default from
    /// [`Self::encode`].
    fn weigh(&self, state: &State) -> usize {
        self.encode(state).map_or(0, |encoded| {
            IN_MEMORY * size::of(encoded.fold.as_ref().unwrap_or(&encoded.view))
        })
    }
}

/// A state in memory takes about twice its text: pointers, lengths and room to grow beside each
/// text and list, names of fields in none of them.
pub(crate) const IN_MEMORY: usize = 2;

/// The [`Fold`] of a compiled [`Projection`].
pub struct Compiled<P> {
    fingerprint: Arc<str>,
    floats: TypedFloats,
    projection: std::marker::PhantomData<fn() -> P>,
}

impl<P: Projection> Compiled<P> {
    /// `fingerprint` tells builds apart: the application's version or image digest. A projection that
    /// states its [`Projection::REVISION`] goes by that instead.
    pub fn new(fingerprint: impl Into<Arc<str>>) -> Self {
        Self {
            fingerprint: P::REVISION.map_or_else(|| fingerprint.into(), |own| format!("revision {own}").into()),
            floats: TypedFloats::default(),
            projection: std::marker::PhantomData,
        }
    }

    fn view(state: &State) -> &P::View {
        state
            .get()
            .expect("a state is only ever handed to the fold that made it")
    }
}

impl<P: Projection> Fold for Compiled<P> {
    fn name(&self) -> &str {
        P::NAME
    }

    fn schema(&self) -> u32 {
        P::SCHEMA
    }

    fn source(&self) -> Source {
        P::source()
    }

    fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    fn keeps_commands(&self) -> bool {
        P::keeps_commands()
    }

    fn may_keep(&self) -> bool {
        P::may_keep()
    }

    fn initial(&self) -> State {
        State::new(P::View::default())
    }

    fn apply(&self, state: &mut State, event: &RawEvent) -> Result<Change, FoldError> {
        let event = guarded(|| codec::decode::<P::Event>(event.clone()))??;
        let view = state
            .get_mut::<P::View>()
            .expect("a state is only ever handed to the fold that made it");
        match guarded(|| P::project(view, event))? {
            Change::Refuse(reason) => Err(FoldError::Refused(reason)),
            Change::Keep => Ok(Change::Keep),
            Change::Put => guarded(|| read_back(view, &self.floats)).map(|()| Change::Put),
        }
    }

    fn encode(&self, state: &State) -> Result<Encoded, FoldError> {
        let view =
            guarded(|| ser::to_document(Self::view(state)))?.map_err(|e| FoldError::Unstorable(e.to_string()))?;
        Ok(Encoded { view, fold: None })
    }

    fn decode(&self, view: &StoredState, fold: Option<&StoredState>) -> Result<State, StateError> {
        let read = guarded(|| fold.unwrap_or(view).read::<P::View>());
        read.map_err(|panicked| StateError(panicked.to_string()))?
            .map(State::new)
    }

    fn weigh(&self, state: &State) -> usize {
        let mut text = Count(0);
        let written = guarded(|| serde_json::to_writer(&mut text, Self::view(state)));
        // What JSON cannot say is as large as it was said so far.
        drop(written);
        size_of::<P::View>() + IN_MEMORY * text.0
    }
}

/// Counts what is written to it.
struct Count(usize);

impl std::io::Write for Count {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0 += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// What the table would change of a view on its way is changed now, before the next event sees it:
/// a float without a fraction comes back to an untyped field as an integer. A view that cannot be
/// written stays as it is; the put says so.
fn read_back<T: Serialize + DeserializeOwned>(view: &mut T, floats: &TypedFloats) {
    if !floats.may_change(view) {
        return;
    }
    let Ok(mut document) = ser::to_document(view) else {
        return;
    };
    as_read_back(&mut document);
    if let Ok(again) = de::from_document(&document) {
        *view = again;
        floats.learn(view);
    }
}

/// Runs a projection's code; a panic is that event's fault, not the process's end.
fn guarded<T>(code: impl FnOnce() -> T) -> Result<T, FoldError> {
    catch_unwind(AssertUnwindSafe(code)).map_err(|panic| FoldError::Panicked(panics::told(&*panic)))
}
