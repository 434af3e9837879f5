//! The guide, in chapters. It is text alone: what it shows is compiled, and its tables are held against
//! the code by `tests/it`.
//!
//! | chapter | for |
//! |---|---|
//! | [projections] | a projection of your own, from `Cargo.toml` to the first replica |
//! | [commands] | what a command may say, what it costs, how fresh an answer is |
//! | [guarantees] | what holds for a replica, for each source, and when something fails |
//! | [settings] | every setting with its default |
//! | [metrics] | every metric, the alerts, the boards |
//! | [operating] | the command line, the page, a start that goes wrong, logs, traces, deployments |
//! | [permissions] | what EventStoreDB and DynamoDB must allow |
//! | [containers] | the whole stack by docker-compose, and an image of your own |
//! | [ecs] | the CloudFormation templates, and one-off tasks |
//! | [reading] | replicas as items, for other languages |
//! | [restoring] | what follows when either store is restored or reset |
//! | [servers] | which versions of EventStoreDB and KurrentDB |
//! | [in_tests] | an EventStoreDB, and doubles, for tests of your own |
//! | [benchmarks] | what is measured, by which command |

/// Chapters refer to each other by name. In the files a name is a link to a file; here the first
/// definition counts, and it is a link to a module.
macro_rules! names {
    () => {
        "\
[projections]: crate::guide::projections\n\
[commands]: crate::guide::commands\n\
[guarantees]: crate::guide::guarantees\n\
[settings]: crate::guide::settings\n\
[metrics]: crate::guide::metrics\n\
[operating]: crate::guide::operating\n\
[permissions]: crate::guide::permissions\n\
[containers]: crate::guide::containers\n\
[ecs]: crate::guide::ecs\n\
[reading]: crate::guide::reading\n\
[restoring]: crate::guide::restoring\n\
[servers]: crate::guide::servers\n\
[in_tests]: crate::guide::in_tests\n\
[benchmarks]: crate::guide::benchmarks\n\
"
    };
}

macro_rules! chapters {
    ($($name:ident)*) => {
        $(
            #[doc = names!()]
            #[doc = include_str!(concat!("guide/", stringify!($name), ".md"))]
            pub mod $name {}
        )*
    };
}

chapters!(
    projections commands guarantees settings metrics operating permissions
    containers ecs reading restoring servers in_tests benchmarks
);
