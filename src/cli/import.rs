//! `projector import`: events from a file into EventStoreDB.
//!
//! Ordered within a stream, parallel across streams. Ids follow from what is imported, so an import
//! that is repeated, or goes on after it was interrupted, adds nothing twice.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::{Context, Exit, Failure, out};
use crate::journal::esdb::EventStore;

mod lines;
mod load;

use lines::LineOrigin;
use load::Loader;

/// Append events from a file to EventStoreDB
///
/// FILE holds one JSON object a line, plain or gzipped, `-` for standard input:
///
///   {"stream":"loan-1","type":"Opened","data":{...},"metadata":{...}}
///
/// metadata may be left out, and "id" (a UUID) may be given. Without one the id follows from
/// stream, place in the stream, type, data and metadata: importing the same file again, whole or
/// from where it broke off, adds nothing. Give files that begin the same streams again, and are
/// meant to be added, different names by --as.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Args {
    /// The file, or - for standard input.
    file: PathBuf,
    /// Go on after a line that cannot be imported; by default the import stops there.
    #[arg(long)]
    keep_going: bool,
    /// Part of every id: the same events under another name are other events.
    #[arg(long = "as", value_name = "NAME", default_value = "")]
    name: String,
    /// Streams appended to at the same time.
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..=512))]
    parallel: u16,
    /// Show no progress bar.
    #[arg(long)]
    quiet: bool,
}

/// How often the progress bar may redraw: what the eye follows.
const REDRAW_HZ: u8 = 10;

/// What an import came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Summary {
    /// Events appended now.
    pub(super) written: u64,
    /// Events that stood there already.
    pub(super) found: u64,
    /// Lines left out.
    pub(super) left_out: u64,
    /// Streams.
    pub(super) streams: usize,
}

pub(super) async fn run(args: Args, context: &Context) -> Result<(), Failure> {
    let journal = EventStore::new(&context.settings.esdb()).map_err(|error| Failure::to(Exit::Usage, &error))?;
    journal.connect().await?;
    let began = Instant::now();
    let summary = import(&args, &journal).await?;
    let seconds = began.elapsed().as_secs_f64();
    out::line(format!(
        "{} events written to {} streams in {seconds:.1} s ({:.0} events/s); {} were there already, {} lines left out",
        summary.written,
        summary.streams,
        (summary.written + summary.found) as f64 / seconds.max(f64::EPSILON),
        summary.found,
        summary.left_out,
    ));
    if summary.left_out > 0 {
        return Err(Failure::new(Exit::No, ""));
    }
    Ok(())
}

async fn import(args: &Args, journal: &EventStore) -> Result<Summary, Failure> {
    let origin = LineOrigin::open(&args.file)?;
    let bar = bar(args, &origin);
    let (mut batches, position) = lines::read(origin, args.name.clone());
    let mut loader = Loader::new(journal.clone(), usize::from(args.parallel));
    let mut stopped = None;
    'reading: while let Some(batch) = batches.recv().await {
        for line in batch {
            match line {
                Ok(event) => loader.take(event).await?,
                Err(bad) => loader.leave_out(bad),
            }
            for bad in loader.complaints() {
                bar.suspend(|| out::complain(&bad));
                if !args.keep_going {
                    stopped = Some(());
                }
            }
            if stopped.is_some() {
                break 'reading;
            }
        }
        bar.set_position(position());
        bar.set_message(format!("{} events", loader.done()));
    }
    // What was read in order and taken is appended; what is after a bad line is not.
    drop(batches);
    let summary = loader.finish().await?;
    for bad in summary.1 {
        bar.suspend(|| out::complain(&bad));
        if !args.keep_going {
            stopped = Some(());
        }
    }
    bar.finish_and_clear();
    if stopped.is_some() {
        return Err(Failure::new(
            Exit::No,
            format!(
                "stopped at the first line that cannot be imported; {} events were written and {} were there already; \
                 mend the line and import again, or add --keep-going",
                summary.0.written, summary.0.found
            ),
        ));
    }
    Ok(summary.0)
}

fn bar(args: &Args, origin: &LineOrigin) -> ProgressBar {
    if args.quiet {
        return ProgressBar::hidden();
    }
    // Not on a terminal, nothing is drawn.
    let target = ProgressDrawTarget::stderr_with_hz(REDRAW_HZ);
    let (bar, template) = match origin.bytes() {
        Some(bytes) => (
            ProgressBar::with_draw_target(Some(bytes), target),
            "{bar:40} {percent:>3}%  {msg}  {elapsed}, {eta} left",
        ),
        None => (
            ProgressBar::with_draw_target(None, target),
            "{spinner} {msg}  {elapsed}",
        ),
    };
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(250));
    bar
}

/// One event, ready to be appended, and where it came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Line {
    /// The line's number, from 1.
    pub(super) number: u64,
    /// The stream.
    pub(super) stream: Arc<str>,
    /// The event.
    pub(super) event: crate::journal::NewEvent,
}
