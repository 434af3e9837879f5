//! A stream's metadata: which of its events can be read, and who may. Keeps: metadata with a value of
//! another type than EventStoreDB accepts is ignored as a whole, as it is there; a number that means
//! nothing, alone.

use std::sync::Arc;

use serde_json::{Map, Value};

use super::super::record::DELETED;

/// The metadata that counts for reading and writing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in super::super) struct Metadata {
    /// `$tb`: the first revision that can be read; [`DELETED`]: softly deleted.
    pub(in super::super) truncate_before: Option<u64>,
    /// `$maxCount`.
    pub(in super::super) max_count: Option<u64>,
    /// `$maxAge`, in seconds.
    pub(in super::super) max_age: Option<u64>,
    /// `$acl`.
    pub(in super::super) acl: Option<Arc<Acl>>,
}

/// Who may do what; an absent list leaves it to the default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in super::super) struct Acl {
    pub(in super::super) read: Option<Vec<String>>,
    pub(in super::super) write: Option<Vec<String>>,
    pub(in super::super) delete: Option<Vec<String>>,
    pub(in super::super) read_metadata: Option<Vec<String>>,
    pub(in super::super) write_metadata: Option<Vec<String>>,
}

/// The longest span that EventStoreDB takes, in seconds: .NET's longest.
const LONGEST: u64 = 922_337_203_685;

impl Metadata {
    /// Whether it says that the stream is softly deleted.
    pub(in super::super) fn deletes(&self) -> bool {
        self.truncate_before == Some(DELETED)
    }

    /// What metadata says; nothing counts when it is not JSON, or anything in it is wrong.
    pub(in super::super) fn parse(data: &[u8], json: bool) -> Self {
        let read = || {
            let Value::Object(map) = serde_json::from_slice(data).ok()? else {
                return None;
            };
            Self::of(&map)
        };
        if json {
            read().unwrap_or_default()
        } else {
            Self::default()
        }
    }

    fn of(map: &Map<String, Value>) -> Option<Self> {
        // A number below its least says nothing; what is no whole number is no metadata.
        let number = |key: &str, least: u64| match map.get(key) {
            None => Some(None),
            Some(value) => Some(u64::try_from(value.as_i64()?).ok().filter(|value| *value >= least)),
        };
        let seconds = |key: &str| number(key, 1).filter(|seconds| seconds.is_none_or(|s| s <= LONGEST));
        if map.get("$tmp").is_some_and(|value| !value.is_boolean()) {
            return None;
        }
        seconds("$cacheControl")?;
        Some(Self {
            truncate_before: number("$tb", 0)?,
            max_count: number("$maxCount", 1)?,
            max_age: seconds("$maxAge")?,
            acl: match map.get("$acl") {
                None => None,
                Some(Value::Object(acl)) => Some(Arc::new(Acl::of(acl)?)),
                Some(_) => return None,
            },
        })
    }
}

impl Acl {
    fn of(map: &Map<String, Value>) -> Option<Self> {
        let roles = |key: &str| match map.get(key) {
            None => Some(None),
            Some(Value::String(one)) => Some(Some(vec![one.clone()])),
            Some(Value::Array(many)) => many
                .iter()
                .map(|one| one.as_str().map(str::to_owned))
                .collect::<Option<Vec<_>>>()
                .map(Some),
            Some(_) => None,
        };
        // Nothing else may stand there.
        if map
            .keys()
            .any(|key| !["$r", "$w", "$d", "$mr", "$mw"].contains(&key.as_str()))
        {
            return None;
        }
        Some(Self {
            read: roles("$r")?,
            write: roles("$w")?,
            delete: roles("$d")?,
            read_metadata: roles("$mr")?,
            write_metadata: roles("$mw")?,
        })
    }
}

/// The same metadata with its `$tb` at this revision; none for what is no object, which deletes nothing.
pub(super) fn revived(data: &[u8], first: i64) -> Option<Vec<u8>> {
    let mut map: Map<String, Value> = serde_json::from_slice(data).ok()?;
    map.insert("$tb".to_owned(), first.into());
    Some(Value::Object(map).to_string().into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Metadata {
        Metadata::parse(text.as_bytes(), true)
    }

    #[test]
    fn known_keys_count_and_others_do_not_matter() {
        let metadata = parsed(r#"{"$tb":3,"$maxCount":2,"$maxAge":60,"mine":{"$tb":"x"}}"#);
        assert_eq!(
            metadata,
            Metadata {
                truncate_before: Some(3),
                max_count: Some(2),
                max_age: Some(60),
                acl: None
            }
        );
        assert!(parsed(r#"{"$tb":9223372036854775807}"#).deletes());
        let acl = parsed(r#"{"$acl":{"$r":"ann","$w":["bob","$ops"]}}"#).acl.unwrap();
        assert_eq!(acl.read, Some(vec!["ann".to_owned()]));
        assert_eq!(acl.write, Some(vec!["bob".to_owned(), "$ops".to_owned()]));
        assert_eq!(acl.delete, None);
    }

    #[test]
    fn one_wrong_type_voids_all_of_it() {
        for wrong in [
            r#"{"$tb":3,"$maxAge":"60"}"#,
            r#"{"$tb":3,"$maxCount":2.0}"#,
            r#"{"$tb":3,"$maxCount":null}"#,
            r#"{"$tb":3,"$maxAge":922337203686}"#,
            r#"{"$tb":3,"$tmp":1}"#,
            r#"{"$tb":3,"$acl":"$userStreamAcl"}"#,
            r#"{"$tb":3,"$acl":{"$r":[1]}}"#,
            r#"{"$tb":3,"$acl":{"mine":"x"}}"#,
            r#"{"$tb":9223372036854775808}"#,
            r#"[{"$tb":3}]"#,
            "not json",
        ] {
            assert_eq!(parsed(wrong), Metadata::default(), "{wrong}");
        }
        assert_eq!(Metadata::parse(br#"{"$tb":3}"#, false), Metadata::default());
    }

    #[test]
    fn a_number_that_means_nothing_is_left_out_alone() {
        let three = Metadata {
            truncate_before: Some(3),
            ..Metadata::default()
        };
        for text in [
            r#"{"$tb":3,"$maxCount":0}"#,
            r#"{"$tb":3,"$maxCount":-1}"#,
            r#"{"$tb":3,"$maxAge":0}"#,
            r#"{"$tb":3,"$cacheControl":-5,"$tmp":true}"#,
        ] {
            assert_eq!(parsed(text), three, "{text}");
        }
        let two = Metadata {
            max_count: Some(2),
            ..Metadata::default()
        };
        assert_eq!(parsed(r#"{"$tb":-1,"$maxCount":2}"#), two);
    }

    #[test]
    fn reviving_keeps_what_else_was_said() {
        let revived = |data: &[u8]| serde_json::from_slice::<Value>(&revived(data, 4)?).ok();
        assert_eq!(
            revived(br#"{"a":1,"$tb":9223372036854775807}"#),
            Some(serde_json::json!({ "$tb": 4, "a": 1 }))
        );
        assert_eq!((revived(b""), revived(b"[]")), (None, None));
    }
}
