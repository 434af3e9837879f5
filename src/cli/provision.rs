//! `projector provision`: makes groups and tables before the daemon runs, with an operator's permissions.

use super::{Context, Exit, Failure, out};
use crate::{
    app::{Connections, item_rules},
    config::CreateTables,
    journal::{
        JournalError,
        feed::{Ensured, Feed as _},
    },
    replica::dynamodb::Creation,
};

/// Make the groups and tables that the projections need
///
/// Creates what is missing and compares what is there. Tables are created on demand billing, with
/// deletion protection and point-in-time recovery unless `dynamodb.create_tables` is "plain".
/// Groups with other settings are shown, and changed only with --apply.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Args {
    /// Only this projection.
    #[arg(long, value_name = "NAME")]
    projection: Option<String>,
    /// Bring groups with other settings to the wanted ones. Their consumers reconnect.
    #[arg(long)]
    apply: bool,
    /// Change nothing: show what is missing or different, and exit 1 when anything is.
    #[arg(long, conflicts_with = "apply")]
    check: bool,
}

pub(super) async fn run(args: Args, context: &Context) -> Result<(), Failure> {
    let planned = match &args.projection {
        Some(name) => vec![context.one(Some(name))?],
        None => context.plan()?,
    };
    if planned.is_empty() {
        return Err(Failure::new(
            Exit::Usage,
            "failed to provision: there is no projection; add a [projection.NAME] table to the settings",
        ));
    }
    let creation = match context.settings.dynamodb.create_tables {
        CreateTables::Plain => Creation::LOCAL,
        CreateTables::No | CreateTables::Protected => Creation::PRODUCTION,
    };
    let connections = Connections::new(&context.settings).await?;
    let tables = connections.tables(None);
    let mut missing = 0;
    for plan in &planned {
        let name = plan.fold.name();
        let rules = item_rules(plan);
        match tables.check(&plan.table, &rules).await? {
            Some(info) if info.ready => out::line(format!("{name}: table {} is there", plan.table)),
            found if args.check => {
                missing += 1;
                let status = found.map_or("missing".to_owned(), |info| info.status);
                out::line(format!("{name}: table {} is {status}", plan.table));
            }
            found => {
                tables.ensure(&plan.table, &rules, Some(&creation)).await?;
                let done = if found.is_some() { "is there now" } else { "created" };
                out::line(format!("{name}: table {} {done}", plan.table));
            }
        }
        let (group, feed) = (&plan.group.name, plan.source.feed());
        if args.check && is_missing(connections.journal.info(&plan.group).await)? {
            missing += 1;
            out::line(format!("{name}: group {group} on {feed} is missing"));
            continue;
        }
        match connections.journal.ensure(&plan.group).await? {
            Ensured::Created => out::line(format!("{name}: group {group} on {feed} created")),
            Ensured::Same => out::line(format!("{name}: group {group} on {feed} is there")),
            Ensured::Different(differences) => {
                for (setting, wanted, found) in &differences {
                    out::line(format!(
                        "{name}: group {group}: {setting} is {found}, wanted is {wanted}"
                    ));
                }
                if args.apply {
                    connections.journal.update_group(&plan.group).await?;
                    out::line(format!("{name}: group {group} changed"));
                } else {
                    missing += usize::from(args.check);
                    out::line(format!("{name}: group {group} left as it is; --apply changes it"));
                }
            }
        }
    }
    if missing > 0 {
        return Err(Failure::new(Exit::No, format!("{missing} to be made or changed")));
    }
    Ok(())
}

/// Whether a group is missing, told from one that could not be asked for.
fn is_missing<T>(answer: Result<T, JournalError>) -> Result<bool, Failure> {
    match answer {
        Ok(_) => Ok(false),
        Err(JournalError::NoGroup { .. }) => Ok(true),
        Err(error) => Err(error.into()),
    }
}
