//! What the daemon does for a stream as traces: one a run, from the delivery that began it to the put
//! that settled it, with its loads, reads, folds and puts as children.
//!
//! A run is collected as data and becomes spans when it has ended, for only then is known what it
//! settled: several deliveries may be folded into one put. By OpenTelemetry's conventions for
//! messaging what handles a batch *links* to what caused each message, and what handles one may have
//! it as *parent*. So: of exactly one sampled command, the run is part of that command's own trace,
//! and command, event and replica are one picture; of several, it is a trace of its own with a link
//! to each. Of events whose commands were not sampled it is not sampled either.
//!
//! Lanes know nothing of this. Where nothing is traced every call ends with its first comparison.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::Arc,
    time::SystemTime,
};

use opentelemetry::{
    Context, KeyValue,
    trace::{Link, Span as _, SpanContext, SpanKind, Status, TraceContextExt as _, Tracer as _},
};
use opentelemetry_sdk::trace::SdkTracer;

use super::{
    effects::Failures,
    lane::{Arrival, Effect, LaneRules, Outcome, PutKind},
};
use crate::{
    event::RawEvent,
    replica::PutOutcome,
    traces::{self, context},
};

/// Commands that one run is linked to. A run of a backlog folds thousands of events; who looks at it
/// follows some of them at most.
const LINKS: usize = 32;
/// Steps of one run that are kept. A usual one has three; one that reads a long history reads on.
const STEPS: usize = 64;

/// OpenTelemetry's names of the stores.
const DYNAMODB: &str = "aws.dynamodb";
const EVENTSTORE: &str = "eventstoredb";

/// What is asked of a store.
fn of(system: &'static str, operation: &'static str) -> Vec<KeyValue> {
    vec![
        KeyValue::new("db.system.name", system),
        KeyValue::new("db.operation.name", operation),
    ]
}

/// One thing that was done in a run.
#[derive(Debug)]
struct Step {
    name: &'static str,
    kind: SpanKind,
    began: SystemTime,
    ended: Option<SystemTime>,
    attributes: Vec<KeyValue>,
    failures: Failures,
    error: Option<String>,
}

/// What became of a run: its word, and why where something went wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
struct SpanEnd {
    word: &'static str,
    error: Option<(&'static str, String)>,
}

impl SpanEnd {
    fn well(word: &'static str) -> Self {
        Self { word, error: None }
    }
}

/// What is done for a stream between two puts.
#[derive(Debug)]
struct Run {
    began: SystemTime,
    contexts: Vec<SpanContext>,
    /// Commands beyond [`LINKS`].
    more: u64,
    deliveries: u64,
    events: u64,
    steps: Vec<Step>,
    /// When the lane was last given something to fold.
    given: Option<SystemTime>,
    /// What the put under way makes of it.
    end: Option<SpanEnd>,
}

impl Run {
    fn begin(now: SystemTime) -> Self {
        Self {
            began: now,
            contexts: Vec::new(),
            more: 0,
            deliveries: 0,
            events: 0,
            steps: Vec::new(),
            given: None,
            end: None,
        }
    }

    fn caused_by(&mut self, context: SpanContext) {
        let known =
            |other: &SpanContext| other.span_id() == context.span_id() && other.trace_id() == context.trace_id();
        if self.contexts.iter().any(known) {
            return;
        }
        if self.contexts.len() < LINKS {
            self.contexts.push(context);
        } else {
            self.more += 1;
        }
    }

    fn join(&mut self, later: Self) {
        for context in later.contexts {
            self.caused_by(context);
        }
        self.more += later.more;
        self.deliveries += later.deliveries;
    }

    /// Whose trace it is part of, and whom it links to.
    fn parentage(&self) -> (Context, Vec<Link>) {
        let sampled: Vec<_> = self.contexts.iter().filter(|context| context.is_sampled()).collect();
        let parent = match (&*sampled, &*self.contexts) {
            ([one], _) => Some(*one),
            // None is sampled: as they are not.
            ([], [first, ..]) => Some(first),
            _ => None,
        };
        let root = Context::new();
        if let Some(parent) = parent {
            return (root.with_remote_span_context(parent.clone()), Vec::new());
        }
        let link = |context: &&SpanContext| Link::new((*context).clone(), Vec::new(), 0);
        (root, sampled.iter().map(link).collect())
    }
}

/// A stream's run, and what has come for its next one while its put is under way.
#[derive(Debug)]
struct Line {
    run: Run,
    putting: bool,
    next: Option<Run>,
}

/// The runs of a projection's streams.
#[derive(Debug)]
pub(super) struct Runs(Option<Box<Open>>);

#[derive(Debug)]
struct Open {
    tracer: SdkTracer,
    name: String,
    attributes: Vec<KeyValue>,
    lines: HashMap<Arc<str>, Line>,
}

impl Runs {
    /// Traced as the process is.
    pub(super) fn new(rules: &LaneRules, group: &str) -> Self {
        Self(traces::tracer().map(|tracer| Box::new(Open::new(tracer, rules, group))))
    }

    /// A delivery has come for a stream.
    pub(super) fn arrived(&mut self, stream: &Arc<str>, arrival: &Arrival) {
        let Some(open) = &mut self.0 else {
            return;
        };
        let line = open.line(stream);
        let run = if line.putting {
            line.next.get_or_insert_with(|| Run::begin(SystemTime::now()))
        } else {
            &mut line.run
        };
        run.deliveries += 1;
        if let Arrival::Event(event) = arrival {
            run.events_from(std::slice::from_ref(event));
        }
    }

    /// An effect begins; what fails in it meanwhile.
    pub(super) fn begins(&mut self, stream: &Arc<str>, effect: &Effect) -> Failures {
        let Some(open) = &mut self.0 else {
            return Failures::default();
        };
        let line = open.line(stream);
        let (name, attributes) = match effect {
            Effect::Load { fresh } => {
                let mut attributes = of(DYNAMODB, "GetItem");
                attributes.push(KeyValue::new("projector.fresh", *fresh));
                ("load", attributes)
            }
            Effect::Read { from, .. } => {
                let mut attributes = of(EVENTSTORE, "ReadStream");
                attributes.push(KeyValue::new("projector.from", from.cast_signed()));
                ("gap read", attributes)
            }
            Effect::Look => ("look", of(EVENTSTORE, "ReadStream")),
            Effect::Put(put, kind) => {
                let mut attributes = of(DYNAMODB, "PutItem");
                let version = put.header.version.map_or(-1, u64::cast_signed);
                attributes.push(KeyValue::new("projector.version", version));
                attributes.push(KeyValue::new("projector.bytes", put.body.bytes() as i64));
                let reason = put.header.quarantine.as_ref().map(|mark| mark.reason.clone());
                line.putting = true;
                line.run.end = Some(end_of(*kind, reason.unwrap_or_default()));
                ("put", attributes)
            }
            Effect::Forget { .. } => ("forget", of(DYNAMODB, "DeleteItem")),
        };
        line.run.step(name, SpanKind::Client, attributes)
    }

    /// Several replicas are loaded at once.
    pub(super) fn load(&mut self, streams: &[Arc<str>]) {
        let Some(open) = &mut self.0 else {
            return;
        };
        for stream in streams {
            let mut attributes = of(DYNAMODB, "BatchGetItem");
            attributes.push(KeyValue::new("db.operation.batch.size", streams.len() as i64));
            open.line(stream).run.step("load", SpanKind::Client, attributes);
        }
    }

    /// An effect has ended; its lane is about to hear of it.
    pub(super) fn answered(&mut self, stream: &Arc<str>, outcome: &Outcome) {
        let Some(open) = &mut self.0 else {
            return;
        };
        let Some(line) = open.lines.get_mut(stream) else {
            return;
        };
        let now = SystemTime::now();
        line.run.given = Some(now);
        if let Some(step) = line.run.steps.last_mut().filter(|step| step.ended.is_none()) {
            step.ended = Some(now);
            step.answered(outcome);
        }
        if let Outcome::Read(slice) = outcome {
            line.run.events_from(&slice.events);
        }
        if !std::mem::take(&mut line.putting) {
            return;
        }
        let next = line.next.take();
        if matches!(outcome, Outcome::Put(PutOutcome::Done)) {
            let end = line.run.end.take().unwrap_or_else(|| SpanEnd::well("stored"));
            let run = match next {
                Some(mut next) => {
                    next.given = Some(now);
                    std::mem::replace(&mut line.run, next)
                }
                None => match open.lines.remove(stream) {
                    Some(line) => line.run,
                    None => return,
                },
            };
            open.emit(stream, run, end);
        } else if let Some(next) = next {
            // What was refused is folded again, with all that has come.
            line.run.join(next);
        }
    }

    /// A lane goes on.
    pub(super) fn goes_on(&mut self, stream: &Arc<str>) {
        if let Some(line) = self.0.as_mut().and_then(|open| open.lines.get_mut(stream)) {
            line.run.given.get_or_insert_with(SystemTime::now);
        }
    }

    /// It went on, and folded so many events; `done`: it holds nothing and wants nothing.
    pub(super) fn went_on(&mut self, stream: &Arc<str>, folded: u64, done: bool) {
        let Some(open) = &mut self.0 else {
            return;
        };
        if folded == 0 && !done {
            if let Some(line) = open.lines.get_mut(stream) {
                line.run.given = None;
            }
            return;
        }
        if folded > 0 {
            let run = &mut open.line(stream).run;
            let now = SystemTime::now();
            let began = run.given.take().unwrap_or(now);
            run.events += folded;
            run.past(
                "fold",
                began,
                now,
                vec![KeyValue::new("projector.events", folded as i64)],
            );
        }
        if done && let Entry::Occupied(line) = open.lines.entry(stream.clone()) {
            let run = line.remove().run;
            open.emit(stream, run, SpanEnd::well("nothing_to_put"));
        }
    }

    /// What is under way is done by another, or again.
    pub(super) fn abandon(&mut self, why: &str) {
        let Some(open) = &mut self.0 else {
            return;
        };
        for (stream, line) in std::mem::take(&mut open.lines) {
            let end = SpanEnd {
                word: "abandoned",
                error: Some(("abandoned", why.to_owned())),
            };
            open.emit(&stream, line.run, end);
        }
    }
}

fn end_of(kind: PutKind, reason: String) -> SpanEnd {
    let (word, error) = match kind {
        PutKind::Fold => ("stored", None),
        PutKind::Quarantine(class) => ("quarantined", Some(class)),
        PutKind::Again => ("quarantined", Some("again")),
        PutKind::Diverged => ("diverged", Some("diverged")),
        PutKind::Deletion => ("deleted", None),
        PutKind::Repair => ("repaired", None),
    };
    SpanEnd {
        word,
        error: error.map(|class| (class, reason)),
    }
}

impl Run {
    fn events_from(&mut self, events: &[RawEvent]) {
        for event in events {
            if let Some(context) = context::of_event(&event.metadata) {
                self.caused_by(context);
            }
        }
    }

    fn step(&mut self, name: &'static str, kind: SpanKind, attributes: Vec<KeyValue>) -> Failures {
        let failures = Failures::recorded();
        self.add(Step {
            name,
            kind,
            began: SystemTime::now(),
            ended: None,
            attributes,
            failures: failures.clone(),
            error: None,
        });
        failures
    }

    fn past(&mut self, name: &'static str, began: SystemTime, ended: SystemTime, attributes: Vec<KeyValue>) {
        self.add(Step {
            name,
            kind: SpanKind::Internal,
            began,
            ended: Some(ended),
            attributes,
            failures: Failures::default(),
            error: None,
        });
    }

    /// What has no place takes that of the one before, so that the end of a long run is seen.
    fn add(&mut self, step: Step) {
        if self.steps.len() == STEPS {
            self.steps.pop();
        }
        self.steps.push(step);
    }
}

impl Step {
    fn answered(&mut self, outcome: &Outcome) {
        let word = match outcome {
            Outcome::Cached(_) => "cached",
            Outcome::Loaded(Some(_)) => "found",
            Outcome::Loaded(None) => "not_found",
            Outcome::Read(slice) => {
                self.attributes
                    .push(KeyValue::new("projector.events", slice.events.len() as i64));
                "read"
            }
            Outcome::Looked(_) => "looked",
            Outcome::Put(PutOutcome::Done) => "done",
            Outcome::Put(PutOutcome::Refused(_)) => "refused",
            Outcome::Corrupt { problem, .. } => {
                self.error = Some(problem.clone());
                "corrupt"
            }
            Outcome::Denied(why) => {
                self.error = Some(why.clone());
                "denied"
            }
            Outcome::Forgotten => "forgotten",
        };
        self.attributes.push(KeyValue::new("projector.outcome", word));
    }
}

impl Open {
    fn new(tracer: SdkTracer, rules: &LaneRules, group: &str) -> Self {
        let projection = rules.fold.name().to_owned();
        Self {
            tracer,
            name: format!("process {projection}"),
            attributes: vec![
                KeyValue::new("messaging.system", EVENTSTORE),
                KeyValue::new("messaging.operation.name", "process"),
                KeyValue::new("messaging.operation.type", "process"),
                KeyValue::new("messaging.consumer.group.name", group.to_owned()),
                KeyValue::new("projector.schema", i64::from(rules.fold.schema())),
                KeyValue::new("projector.projection", projection),
            ],
            lines: HashMap::new(),
        }
    }

    fn line(&mut self, stream: &Arc<str>) -> &mut Line {
        self.lines.entry(stream.clone()).or_insert_with(|| Line {
            run: Run::begin(SystemTime::now()),
            putting: false,
            next: None,
        })
    }

    /// Makes spans of a run that has ended.
    fn emit(&self, stream: &Arc<str>, run: Run, end: SpanEnd) {
        let now = SystemTime::now();
        let (parent, links) = run.parentage();
        let about = KeyValue::new("projector.stream", stream.to_string());
        let mut attributes = self.attributes.clone();
        attributes.extend([
            about.clone(),
            KeyValue::new("messaging.destination.name", stream.to_string()),
            KeyValue::new("messaging.batch.message_count", run.deliveries as i64),
            KeyValue::new("projector.events", run.events as i64),
            KeyValue::new("projector.outcome", end.word),
        ]);
        if run.more > 0 {
            attributes.push(KeyValue::new("projector.links_left_out", run.more as i64));
        }
        if let Some((class, _)) = &end.error {
            attributes.push(KeyValue::new("error.type", *class));
        }
        let builder = self
            .tracer
            .span_builder(self.name.clone())
            .with_kind(SpanKind::Consumer)
            .with_start_time(run.began)
            .with_attributes(attributes)
            .with_links(links);
        let mut span = self.tracer.build_with_context(builder, &parent);
        if !span.is_recording() {
            return;
        }
        if let Some((_, why)) = end.error {
            span.set_status(Status::error(why));
        }
        let within = parent.with_span(span);
        for step in run.steps {
            let mut attributes = step.attributes;
            attributes.push(about.clone());
            let (failures, last) = step.failures.told();
            if failures > 0 {
                attributes.push(KeyValue::new("projector.failures", i64::from(failures)));
                attributes.push(KeyValue::new("projector.failure", last.clone()));
            }
            let builder = self
                .tracer
                .span_builder(step.name)
                .with_kind(step.kind)
                .with_start_time(step.began)
                .with_attributes(attributes);
            let mut span = self.tracer.build_with_context(builder, &within);
            // What was not answered any more failed with what failed it last.
            let unanswered = (step.ended.is_none() && failures > 0).then_some(last);
            if let Some(why) = step.error.or(unanswered) {
                span.set_status(Status::error(why));
            }
            span.end_with_timestamp(step.ended.unwrap_or(now));
        }
        within.span().end_with_timestamp(now);
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry::trace::{SpanId, TraceFlags, TraceId, TraceState};

    use super::*;

    fn caused(id: u64, flags: TraceFlags) -> SpanContext {
        let trace = TraceId::from(u128::from(id));
        SpanContext::new(trace, SpanId::from(id), flags, true, TraceState::default())
    }

    fn run(contexts: &[(u64, TraceFlags)]) -> Run {
        let mut run = Run::begin(SystemTime::now());
        for (id, flags) in contexts {
            run.caused_by(caused(*id, *flags));
        }
        run
    }

    #[test]
    fn one_command_is_the_parent_and_several_are_links() {
        let (yes, no) = (TraceFlags::SAMPLED, TraceFlags::NOT_SAMPLED);
        let of = |contexts: &[(u64, TraceFlags)]| {
            let (parent, links) = run(contexts).parentage();
            let parent = parent.span().span_context().clone();
            let linked: Vec<_> = links.iter().map(|link| link.span_context.span_id()).collect();
            (parent.is_valid().then(|| parent.span_id()), linked)
        };
        let id = SpanId::from;
        assert_eq!(of(&[]), (None, vec![]));
        assert_eq!(of(&[(1, yes)]), (Some(id(1)), vec![]));
        assert_eq!(
            of(&[(1, yes), (1, yes)]),
            (Some(id(1)), vec![]),
            "two events of one command"
        );
        assert_eq!(of(&[(1, yes), (2, yes)]), (None, vec![id(1), id(2)]));
        assert_eq!(of(&[(1, no), (2, yes)]), (Some(id(2)), vec![]));
        assert_eq!(
            of(&[(1, no), (2, no)]),
            (Some(id(1)), vec![]),
            "as they are: not sampled"
        );
        assert_eq!(of(&[(1, no), (2, yes), (3, yes)]), (None, vec![id(2), id(3)]));
    }

    #[test]
    fn links_and_steps_are_bounded() {
        let contexts: Vec<_> = (1..=100).map(|id| (id, TraceFlags::SAMPLED)).collect();
        let mut run = run(&contexts);
        assert_eq!((run.parentage().1.len(), run.more), (LINKS, 100 - LINKS as u64));
        for _ in 0..1_000 {
            run.step("gap read", SpanKind::Client, Vec::new());
        }
        run.step("put", SpanKind::Client, Vec::new());
        assert_eq!(run.steps.len(), STEPS);
        assert_eq!(run.steps.last().map(|step| step.name), Some("put"));
    }
}
