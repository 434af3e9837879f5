//! The binary: the command line with no projections of its own. What it runs is in the settings;
//! services with projections in code build a binary like this one around them.

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: projector::Allocator = projector::Allocator;

fn main() -> ExitCode {
    projector::cli::main(Ok)
}
