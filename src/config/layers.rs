//! Where settings come from: built in, files, a whole file in a variable, single variables, flags,
//! each over the ones before it. Every value remembers its origin, so that an error can name it.
//!
//! Parsing, origins and typing are `config`'s. Merging is ours: its own source for variables takes
//! every name that begins right, and a name that means no setting is to be an error that says what is
//! allowed; and a variable means the key that a file has already written with hyphens or capitals.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::LazyLock,
};

use config::{Config, FileFormat, Map, Source, Value, ValueKind};

use super::{ConfigError, ProjectionSection, Settings};

/// What single settings in the environment begin with.
const PREFIX: &str = "PROJECTOR__";
/// Variables with the whole of something, and not a key.
pub const ENV: &str = "PROJECTOR_ENV";
/// A whole settings file inline, over the files.
pub const CONFIG_TOML: &str = "PROJECTOR_CONFIG_TOML";
/// The folder with the settings files.
pub const CONFIG_DIR: &str = "PROJECTOR_CONFIG_DIR";
/// The folder unless a flag or variable says otherwise.
pub const DEFAULT_DIR: &str = "config";

/// What the outside says, gathered once so that tests can say something else.
#[derive(Clone, Debug, Default)]
pub struct Inputs {
    /// The folder with the settings files; `None`: from the environment or the default one.
    pub dir: Option<PathBuf>,
    /// The environment.
    pub environment: BTreeMap<String, String>,
    /// `KEY=VALUE` as flags give them.
    pub flags: Vec<(String, String)>,
}

impl Inputs {
    /// This process's environment.
    pub fn from_process() -> Self {
        Self {
            environment: std::env::vars().collect(),
            ..Self::default()
        }
    }
}

pub(super) fn load(inputs: &Inputs) -> Result<Settings, ConfigError> {
    let variable = |name: &str| inputs.environment.get(name).filter(|v| !v.is_empty());
    let asked_dir = inputs.dir.clone().or_else(|| variable(CONFIG_DIR).map(PathBuf::from));
    let dir = asked_dir.clone().unwrap_or_else(|| DEFAULT_DIR.into());
    if asked_dir.is_some() && !dir.is_dir() {
        return Err(ConfigError::NoDir(dir));
    }

    let mut tree = Tree::default();
    let default = dir.join("default.toml");
    if default.is_file() {
        tree.add_file(&default)?;
    }
    if let Some(environment) = variable(ENV) {
        let file = dir.join(format!("{environment}.toml"));
        if !file.is_file() || environment.contains(['/', '\\']) {
            return Err(ConfigError::NoEnvironment {
                name: environment.clone(),
                file,
            });
        }
        tree.add_file(&file)?;
    }
    if let Some(text) = variable(CONFIG_TOML) {
        tree.add_text(text, CONFIG_TOML)?;
    }
    for (name, value) in &inputs.environment {
        if let Some(path) = name.strip_prefix(PREFIX) {
            let segments: Vec<_> = path.split("__").collect();
            let key = tree.key_of(&segments).ok_or_else(|| ConfigError::UnknownVariable {
                name: name.clone(),
                allowed: allowed_at(&segments),
            })?;
            tree.set(&key, value, &format!("variable {name}"));
        } else if name.starts_with("PROJECTOR_") && name.contains("__") {
            // `PROJECTOR_HTTP__LISTEN`: one underscore short of being heard.
            return Err(ConfigError::UnknownVariable {
                name: name.clone(),
                allowed: format!("a setting begins with {PREFIX}"),
            });
        }
    }
    for (name, value) in &inputs.flags {
        let segments: Vec<_> = name.split('.').collect();
        let key = tree.key_of(&segments).ok_or_else(|| ConfigError::UnknownFlag {
            name: name.clone(),
            allowed: allowed_at(&segments),
        })?;
        tree.set(&key, value, &format!("flag --set {name}"));
    }
    tree.read()
}

/// The merged settings before they are typed.
#[derive(Debug, Default)]
struct Tree {
    root: Map<String, Value>,
}

impl Tree {
    fn add_file(&mut self, file: &Path) -> Result<(), ConfigError> {
        let text = std::fs::read_to_string(file).map_err(|error| ConfigError::Unreadable {
            file: file.to_owned(),
            problem: error.to_string(),
        })?;
        self.add_text(&text, &file.display().to_string())
    }

    fn add_text(&mut self, text: &str, origin: &str) -> Result<(), ConfigError> {
        let table = config::File::from_str(text, FileFormat::Toml)
            .collect()
            .map_err(|error| ConfigError::NotToml {
                origin: origin.to_owned(),
                // The parser's message shows the line it stumbled over, which may hold a secret.
                problem: without_excerpt(&error.to_string()),
            })?;
        let table = table.into_iter().map(|(k, v)| (k, originated(v, origin))).collect();
        merge(&mut self.root, table);
        Ok(())
    }

    /// The key that a variable's segments mean: names that are there first, whatever their case
    /// and hyphens, then the settings' own.
    fn key_of(&self, segments: &[&str]) -> Option<Vec<String>> {
        let lower: Vec<String> = segments.iter().map(|s| s.to_ascii_lowercase()).collect();
        if lower.iter().any(String::is_empty) {
            return None;
        }
        match lower.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
            ["projection", _, "promote", _, leaf @ ("path" | "type")] => {
                let name = self.name_like(&["projection"], segments[1]);
                let attribute = self.name_like(&["projection", &name, "promote"], segments[3]);
                Some(
                    ["projection", &name, "promote", &attribute, leaf]
                        .map(str::to_owned)
                        .into(),
                )
            }
            ["projection", _, key] if *key != "promote" && projection_keys().iter().any(|k| k == key) => {
                let name = self.name_like(&["projection"], segments[1]);
                Some(["projection", &name, key].map(str::to_owned).into())
            }
            [section, key]
                if section_keys()
                    .get(*section)
                    .is_some_and(|keys| keys.iter().any(|k| k == key)) =>
            {
                Some([*section, *key].map(str::to_owned).into())
            }
            _ => None,
        }
    }

    /// The name in the table at `path` that `said` means: variables have no hyphens, no dots, and
    /// mostly no lower case.
    fn name_like(&self, path: &[&str], said: &str) -> String {
        let plain = |name: &str| name.to_ascii_lowercase().replace(['-', '.'], "_");
        let mut table = Some(&self.root);
        for step in path {
            table = table.and_then(|t| t.get(*step)).and_then(|value| match &value.kind {
                ValueKind::Table(table) => Some(table),
                _ => None,
            });
        }
        let known = table.into_iter().flat_map(Map::keys);
        let mut alike: Vec<_> = known.filter(|name| plain(name) == plain(said)).collect();
        alike.sort_by_key(|name| name.as_str() != said);
        alike
            .first()
            .map_or_else(|| said.to_ascii_lowercase(), |name| (*name).clone())
    }

    fn set(&mut self, path: &[String], value: &str, origin: &str) {
        let mut value = Value::new(Some(&origin.to_owned()), ValueKind::String(value.to_owned()));
        for step in path[1..].iter().rev() {
            let table: Map<String, Value> = [(step.clone(), value)].into_iter().collect();
            value = Value::new(Some(&origin.to_owned()), ValueKind::Table(table));
        }
        merge(&mut self.root, [(path[0].clone(), value)].into_iter().collect());
    }

    fn read(self) -> Result<Settings, ConfigError> {
        let typed = Config::builder()
            .add_source(Merged(self.root.clone()))
            .build()
            .and_then(Config::try_deserialize);
        typed.map_err(|error| ConfigError::BadValue(explain(&error, &self.root)))
    }
}

/// A tree that is merged already, as a source.
#[derive(Clone, Debug)]
struct Merged(Map<String, Value>);

impl Source for Merged {
    fn clone_into_box(&self) -> Box<dyn Source + Send + Sync> {
        Box::new(self.clone())
    }

    fn collect(&self) -> Result<Map<String, Value>, config::ConfigError> {
        Ok(self.0.clone())
    }
}

/// Tables grow together; everything else is replaced.
fn merge(into: &mut Map<String, Value>, from: Map<String, Value>) {
    for (key, value) in from {
        let old = into.remove(&key);
        let merged = match (old.map(|old| old.kind), value.kind.clone()) {
            (Some(ValueKind::Table(mut old)), ValueKind::Table(more)) => {
                merge(&mut old, more);
                Value::new(None, ValueKind::Table(old))
            }
            _ => value,
        };
        into.insert(key, merged);
    }
}

/// The value with its origin, and all that is in it likewise.
fn originated(value: Value, origin: &str) -> Value {
    let kind = match value.kind {
        ValueKind::Table(table) => {
            ValueKind::Table(table.into_iter().map(|(k, v)| (k, originated(v, origin))).collect())
        }
        ValueKind::Array(list) => ValueKind::Array(list.into_iter().map(|v| originated(v, origin)).collect()),
        kind => kind,
    };
    Value::new(Some(&origin.to_owned()), kind)
}

/// The first line of a TOML parser's message and its last: what lies between shows the text.
fn without_excerpt(message: &str) -> String {
    let mut lines = message.lines().filter(|l| !l.trim().is_empty());
    let first = lines.next().unwrap_or_default().trim();
    match lines.next_back() {
        Some(last) if !last.contains(['|', '^']) => format!("{first}: {}", last.trim()),
        _ => first.to_owned(),
    }
}

/// Keys whose values are shown nowhere.
const SECRETS: [&str; 3] = ["eventstore.password", "eventstore.user_key", "eventstore.connection"];

/// An error of the typed reading, by key, value, origin and what is allowed.
fn explain(error: &config::ConfigError, root: &Map<String, Value>) -> String {
    use config::ConfigError as E;
    let (what, key) = match error {
        E::Type {
            unexpected,
            expected,
            key,
            ..
        } => (format!("{unexpected} is not {expected}"), key.clone()),
        E::At { error, key, .. } => (error.to_string(), key.clone()),
        other => (other.to_string(), None),
    };
    let Some(key) = key else { return what };
    let mut at: Option<&Value> = None;
    let mut table = Some(root);
    for step in key.split('.') {
        at = table.and_then(|t| t.get(step));
        table = at.and_then(|value| match &value.kind {
            ValueKind::Table(table) => Some(table),
            _ => None,
        });
    }
    let origin = at
        .and_then(Value::origin)
        .map_or_else(String::new, |origin| format!(" from {origin}"));
    if SECRETS.contains(&key.as_str()) {
        return format!("`{key}`{origin}: a text is needed");
    }
    format!("`{key}`{origin}: {what}")
}

/// The settings' sections and their keys, as the structs have them.
pub(super) fn section_keys() -> &'static BTreeMap<String, Vec<String>> {
    static KEYS: LazyLock<BTreeMap<String, Vec<String>>> = LazyLock::new(|| {
        let all = serde_json::to_value(Settings::default()).unwrap_or_default();
        let sections = all.as_object().into_iter().flatten();
        sections
            .filter(|(name, _)| *name != "projection")
            .map(|(name, section)| (name.clone(), names(section)))
            .collect()
    });
    &KEYS
}

/// The keys of one projection's table.
pub(super) fn projection_keys() -> &'static [String] {
    static KEYS: LazyLock<Vec<String>> =
        LazyLock::new(|| names(&serde_json::to_value(ProjectionSection::default()).unwrap_or_default()));
    &KEYS
}

fn names(section: &serde_json::Value) -> Vec<String> {
    section
        .as_object()
        .into_iter()
        .flatten()
        .map(|(k, _)| k.clone())
        .collect()
}

/// What could stand where these segments do.
fn allowed_at(segments: &[&str]) -> String {
    let section = segments.first().map(|s| s.to_ascii_lowercase()).unwrap_or_default();
    if section == "projection" {
        return format!(
            "below `projection`, NAME comes next and then one of {}",
            projection_keys().join(", ")
        );
    }
    if let Some(keys) = section_keys().get(&section) {
        return format!("`{section}` has {}", keys.join(", "));
    }
    let sections: Vec<_> = section_keys().keys().map(String::as_str).collect();
    format!("sections are {}, projection", sections.join(", "))
}
