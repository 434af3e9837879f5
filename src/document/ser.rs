//! From a Rust state to a [`Document`], exactly or not at all.

use std::{collections::BTreeMap, fmt};

use serde::{
    Serialize,
    ser::{self, Impossible},
};

use super::{Document, json};

/// `serde_json`'s own name for a number that it keeps as text (its feature `arbitrary_precision`).
const JSON_NUMBER: &str = "$serde_json::private::Number";
/// `serde_json`'s own name for a piece of JSON text.
const JSON_RAW: &str = "$serde_json::private::RawValue";

/// A state that cannot be data; says where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SerError {
    /// Innermost first.
    path: Vec<String>,
    what: String,
}

impl SerError {
    fn new(what: impl Into<String>) -> Self {
        Self {
            path: Vec::new(),
            what: what.into(),
        }
    }

    fn within(mut self, step: impl Into<String>) -> Self {
        self.path.push(step.into());
        self
    }
}

impl fmt::Display for SerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.path.is_empty() {
            return f.write_str(&self.what);
        }
        f.write_str("at `")?;
        for (index, step) in self.path.iter().rev().enumerate() {
            let dot = if index == 0 || step.starts_with('[') { "" } else { "." };
            write!(f, "{dot}{step}")?;
        }
        write!(f, "`: {}", self.what)
    }
}

impl std::error::Error for SerError {}

impl ser::Error for SerError {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self::new(message.to_string())
    }
}

/// The state as data. Fails on a number that no JSON number is (NaN, infinities), on a map key that
/// is no text, and on whatever the state's own `Serialize` refuses; the error names the path.
pub fn to_document<T: Serialize + ?Sized>(state: &T) -> Result<Document, SerError> {
    state.serialize(ToDocument)
}

struct ToDocument;

fn number(text: impl fmt::Display) -> Document {
    Document::Number(text.to_string().into_boxed_str())
}

fn float(value: f64, text: impl FnOnce() -> Result<String, serde_json::Error>) -> Result<Document, SerError> {
    if !value.is_finite() {
        return Err(SerError::new(format!("{value} is not a number that can be stored")));
    }
    // The shortest text that reads back as the same float.
    text()
        .map(|text| Document::Number(text.into_boxed_str()))
        .map_err(|e| SerError::new(e.to_string()))
}

fn variant(name: &str, content: Document) -> Document {
    Document::Map(BTreeMap::from([(name.to_owned(), content)]))
}

impl ser::Serializer for ToDocument {
    type Ok = Document;
    type Error = SerError;
    type SerializeSeq = List;
    type SerializeTuple = List;
    type SerializeTupleStruct = List;
    type SerializeTupleVariant = List;
    type SerializeMap = Map;
    type SerializeStruct = Struct;
    type SerializeStructVariant = Struct;

    fn serialize_bool(self, v: bool) -> Result<Document, SerError> {
        Ok(Document::Bool(v))
    }
    fn serialize_i8(self, v: i8) -> Result<Document, SerError> {
        Ok(number(v))
    }
    fn serialize_i16(self, v: i16) -> Result<Document, SerError> {
        Ok(number(v))
    }
    fn serialize_i32(self, v: i32) -> Result<Document, SerError> {
        Ok(number(v))
    }
    fn serialize_i64(self, v: i64) -> Result<Document, SerError> {
        Ok(number(v))
    }
    fn serialize_i128(self, v: i128) -> Result<Document, SerError> {
        Ok(number(v))
    }
    fn serialize_u8(self, v: u8) -> Result<Document, SerError> {
        Ok(number(v))
    }
    fn serialize_u16(self, v: u16) -> Result<Document, SerError> {
        Ok(number(v))
    }
    fn serialize_u32(self, v: u32) -> Result<Document, SerError> {
        Ok(number(v))
    }
    fn serialize_u64(self, v: u64) -> Result<Document, SerError> {
        Ok(number(v))
    }
    fn serialize_u128(self, v: u128) -> Result<Document, SerError> {
        Ok(number(v))
    }
    fn serialize_f32(self, v: f32) -> Result<Document, SerError> {
        float(f64::from(v), || serde_json::to_string(&v))
    }
    fn serialize_f64(self, v: f64) -> Result<Document, SerError> {
        float(v, || serde_json::to_string(&v))
    }
    fn serialize_char(self, v: char) -> Result<Document, SerError> {
        Ok(Document::String(v.to_string()))
    }
    fn serialize_str(self, v: &str) -> Result<Document, SerError> {
        Ok(Document::String(v.to_owned()))
    }
    fn serialize_bytes(self, v: &[u8]) -> Result<Document, SerError> {
        Ok(Document::List(v.iter().map(number).collect()))
    }
    fn serialize_none(self) -> Result<Document, SerError> {
        Ok(Document::Null)
    }
    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<Document, SerError> {
        value.serialize(self)
    }
    fn serialize_unit(self) -> Result<Document, SerError> {
        Ok(Document::Null)
    }
    fn serialize_unit_struct(self, _: &'static str) -> Result<Document, SerError> {
        Ok(Document::Null)
    }
    fn serialize_unit_variant(self, _: &'static str, _: u32, name: &'static str) -> Result<Document, SerError> {
        Ok(Document::String(name.to_owned()))
    }
    fn serialize_newtype_struct<T: Serialize + ?Sized>(self, _: &'static str, value: &T) -> Result<Document, SerError> {
        value.serialize(self)
    }
    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        _: u32,
        name: &'static str,
        value: &T,
    ) -> Result<Document, SerError> {
        value
            .serialize(self)
            .map(|content| variant(name, content))
            .map_err(|e| e.within(name))
    }
    fn serialize_seq(self, len: Option<usize>) -> Result<List, SerError> {
        Ok(List {
            name: None,
            items: Vec::with_capacity(len.unwrap_or_default()),
        })
    }
    fn serialize_tuple(self, len: usize) -> Result<List, SerError> {
        self.serialize_seq(Some(len))
    }
    fn serialize_tuple_struct(self, _: &'static str, len: usize) -> Result<List, SerError> {
        self.serialize_seq(Some(len))
    }
    fn serialize_tuple_variant(
        self,
        _: &'static str,
        _: u32,
        name: &'static str,
        len: usize,
    ) -> Result<List, SerError> {
        Ok(List {
            name: Some(name),
            items: Vec::with_capacity(len),
        })
    }
    fn serialize_map(self, _: Option<usize>) -> Result<Map, SerError> {
        Ok(Map {
            key: String::new(),
            members: BTreeMap::new(),
        })
    }
    fn serialize_struct(self, name: &'static str, _: usize) -> Result<Struct, SerError> {
        Ok(Struct {
            name,
            variant: None,
            members: BTreeMap::new(),
        })
    }
    fn serialize_struct_variant(
        self,
        name: &'static str,
        _: u32,
        variant: &'static str,
        _: usize,
    ) -> Result<Struct, SerError> {
        Ok(Struct {
            name,
            variant: Some(variant),
            members: BTreeMap::new(),
        })
    }
}

/// A list under construction, of a variant perhaps.
pub struct List {
    name: Option<&'static str>,
    items: Vec<Document>,
}

impl List {
    fn add<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), SerError> {
        let index = self.items.len();
        self.items.push(
            value
                .serialize(ToDocument)
                .map_err(|e| e.within(format!("[{index}]")))?,
        );
        Ok(())
    }

    fn done(self) -> Document {
        let list = Document::List(self.items);
        self.name.map_or(list.clone(), |name| variant(name, list))
    }
}

impl ser::SerializeSeq for List {
    type Ok = Document;
    type Error = SerError;
    fn serialize_element<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), SerError> {
        self.add(value)
    }
    fn end(self) -> Result<Document, SerError> {
        Ok(Document::List(self.items))
    }
}

impl ser::SerializeTuple for List {
    type Ok = Document;
    type Error = SerError;
    fn serialize_element<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), SerError> {
        self.add(value)
    }
    fn end(self) -> Result<Document, SerError> {
        Ok(Document::List(self.items))
    }
}

impl ser::SerializeTupleStruct for List {
    type Ok = Document;
    type Error = SerError;
    fn serialize_field<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), SerError> {
        self.add(value)
    }
    fn end(self) -> Result<Document, SerError> {
        Ok(Document::List(self.items))
    }
}

impl ser::SerializeTupleVariant for List {
    type Ok = Document;
    type Error = SerError;
    fn serialize_field<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), SerError> {
        self.add(value)
    }
    fn end(self) -> Result<Document, SerError> {
        Ok(self.done())
    }
}

/// A map under construction.
pub struct Map {
    key: String,
    members: BTreeMap<String, Document>,
}

impl ser::SerializeMap for Map {
    type Ok = Document;
    type Error = SerError;
    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Result<(), SerError> {
        self.key = key.serialize(Key)?;
        Ok(())
    }
    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), SerError> {
        let key = std::mem::take(&mut self.key);
        let value = value.serialize(ToDocument).map_err(|e| e.within(key.clone()))?;
        self.members.insert(key, value);
        Ok(())
    }
    fn end(self) -> Result<Document, SerError> {
        Ok(Document::Map(self.members))
    }
}

/// A struct under construction, of a variant perhaps.
pub struct Struct {
    name: &'static str,
    variant: Option<&'static str>,
    members: BTreeMap<String, Document>,
}

impl Struct {
    fn add<T: Serialize + ?Sized>(&mut self, key: &'static str, value: &T) -> Result<(), SerError> {
        let value = value.serialize(ToDocument).map_err(|e| e.within(key))?;
        self.members.insert(key.to_owned(), value);
        Ok(())
    }

    fn done(mut self) -> Result<Document, SerError> {
        if matches!(self.name, JSON_NUMBER | JSON_RAW)
            && let Some(Document::String(text)) = self.members.remove(self.name)
        {
            return json::parse(&text).map_err(|e| SerError::new(e.to_string()));
        }
        let map = Document::Map(self.members);
        Ok(match self.variant {
            Some(name) => variant(name, map),
            None => map,
        })
    }
}

impl ser::SerializeStruct for Struct {
    type Ok = Document;
    type Error = SerError;
    fn serialize_field<T: Serialize + ?Sized>(&mut self, key: &'static str, value: &T) -> Result<(), SerError> {
        self.add(key, value)
    }
    fn end(self) -> Result<Document, SerError> {
        self.done()
    }
}

impl ser::SerializeStructVariant for Struct {
    type Ok = Document;
    type Error = SerError;
    fn serialize_field<T: Serialize + ?Sized>(&mut self, key: &'static str, value: &T) -> Result<(), SerError> {
        self.add(key, value)
    }
    fn end(self) -> Result<Document, SerError> {
        self.done()
    }
}

/// A map key as text.
struct Key;

macro_rules! keys {
    ($($method:ident: $kind:ty),*) => {
        $(fn $method(self, v: $kind) -> Result<String, SerError> {
            Ok(v.to_string())
        })*
    };
}

macro_rules! no_key {
    ($($method:ident($($arg:ty),*) -> $out:ty;)*) => {
        $(fn $method(self, $(_: $arg),*) -> Result<$out, SerError> {
            Err(SerError::new("a map key must be text, a number or a boolean"))
        })*
    };
}

impl ser::Serializer for Key {
    type Ok = String;
    type Error = SerError;
    type SerializeSeq = Impossible<String, SerError>;
    type SerializeTuple = Impossible<String, SerError>;
    type SerializeTupleStruct = Impossible<String, SerError>;
    type SerializeTupleVariant = Impossible<String, SerError>;
    type SerializeMap = Impossible<String, SerError>;
    type SerializeStruct = Impossible<String, SerError>;
    type SerializeStructVariant = Impossible<String, SerError>;

    keys! {
        serialize_bool: bool, serialize_i8: i8, serialize_i16: i16, serialize_i32: i32, serialize_i64: i64,
        serialize_i128: i128, serialize_u8: u8, serialize_u16: u16, serialize_u32: u32, serialize_u64: u64,
        serialize_u128: u128, serialize_char: char, serialize_str: &str
    }

    no_key! {
        serialize_f32(f32) -> String;
        serialize_f64(f64) -> String;
        serialize_bytes(&[u8]) -> String;
        serialize_none() -> String;
        serialize_unit() -> String;
        serialize_unit_struct(&'static str) -> String;
        serialize_seq(Option<usize>) -> Self::SerializeSeq;
        serialize_tuple(usize) -> Self::SerializeTuple;
        serialize_tuple_struct(&'static str, usize) -> Self::SerializeTupleStruct;
        serialize_tuple_variant(&'static str, u32, &'static str, usize) -> Self::SerializeTupleVariant;
        serialize_map(Option<usize>) -> Self::SerializeMap;
        serialize_struct(&'static str, usize) -> Self::SerializeStruct;
        serialize_struct_variant(&'static str, u32, &'static str, usize) -> Self::SerializeStructVariant;
    }

    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<String, SerError> {
        value.serialize(self)
    }
    fn serialize_unit_variant(self, _: &'static str, _: u32, name: &'static str) -> Result<String, SerError> {
        Ok(name.to_owned())
    }
    fn serialize_newtype_struct<T: Serialize + ?Sized>(self, _: &'static str, value: &T) -> Result<String, SerError> {
        value.serialize(self)
    }
    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        _: &T,
    ) -> Result<String, SerError> {
        Err(SerError::new("a map key must be text, a number or a boolean"))
    }
}
