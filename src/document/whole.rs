//! Whether a state holds a float that is a whole number, found without a copy of it.
//!
//! To DynamoDB 1.0 and 1 are one number. A typed field reads it back as what it is; an untyped one
//! (`serde_json::Value`) gets an integer where a float was. Nothing else changes on the way.

use std::fmt;

use serde::ser::{self, Serialize};

/// Whether any number of `state` is a float without a fraction.
pub(crate) fn holds_whole_float<T: Serialize>(state: &T) -> bool {
    matches!(state.serialize(Probe), Err(Met::WholeFloat))
}

#[derive(Clone, Copy)]
struct Probe;

/// What ended the walk.
#[derive(Debug)]
enum Met {
    WholeFloat,
    /// The state cannot be written at all; whoever writes it says why.
    Error,
}

impl fmt::Display for Met {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the walk through a state ended early")
    }
}

impl std::error::Error for Met {}

impl ser::Error for Met {
    fn custom<T: fmt::Display>(_: T) -> Self {
        Self::Error
    }
}

macro_rules! nothing {
    ($($method:ident: $type:ty),+ $(,)?) => {
        $(fn $method(self, _: $type) -> Result<(), Met> {
            Ok(())
        })+
    };
}

impl ser::Serializer for Probe {
    type Ok = ();
    type Error = Met;
    type SerializeSeq = Self;
    type SerializeTuple = Self;
    type SerializeTupleStruct = Self;
    type SerializeTupleVariant = Self;
    type SerializeMap = Self;
    type SerializeStruct = Self;
    type SerializeStructVariant = Self;

    nothing! {
        serialize_bool: bool, serialize_i8: i8, serialize_i16: i16, serialize_i32: i32,
        serialize_i64: i64, serialize_i128: i128, serialize_u8: u8, serialize_u16: u16,
        serialize_u32: u32, serialize_u64: u64, serialize_u128: u128, serialize_char: char,
        serialize_str: &str, serialize_bytes: &[u8], serialize_unit_struct: &'static str,
    }

    fn serialize_f32(self, v: f32) -> Result<(), Met> {
        self.serialize_f64(f64::from(v))
    }
    fn serialize_f64(self, v: f64) -> Result<(), Met> {
        if v.fract() == 0.0 { Err(Met::WholeFloat) } else { Ok(()) }
    }
    fn serialize_none(self) -> Result<(), Met> {
        Ok(())
    }
    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<(), Met> {
        value.serialize(self)
    }
    fn serialize_unit(self) -> Result<(), Met> {
        Ok(())
    }
    fn serialize_unit_variant(self, _: &'static str, _: u32, _: &'static str) -> Result<(), Met> {
        Ok(())
    }
    fn serialize_newtype_struct<T: Serialize + ?Sized>(self, _: &'static str, value: &T) -> Result<(), Met> {
        value.serialize(self)
    }
    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        value: &T,
    ) -> Result<(), Met> {
        value.serialize(self)
    }
    fn serialize_seq(self, _: Option<usize>) -> Result<Self, Met> {
        Ok(self)
    }
    fn serialize_tuple(self, _: usize) -> Result<Self, Met> {
        Ok(self)
    }
    fn serialize_tuple_struct(self, _: &'static str, _: usize) -> Result<Self, Met> {
        Ok(self)
    }
    fn serialize_tuple_variant(self, _: &'static str, _: u32, _: &'static str, _: usize) -> Result<Self, Met> {
        Ok(self)
    }
    fn serialize_map(self, _: Option<usize>) -> Result<Self, Met> {
        Ok(self)
    }
    fn serialize_struct(self, _: &'static str, _: usize) -> Result<Self, Met> {
        Ok(self)
    }
    fn serialize_struct_variant(self, _: &'static str, _: u32, _: &'static str, _: usize) -> Result<Self, Met> {
        Ok(self)
    }
}

macro_rules! walks {
    ($($trait:ident: $method:ident($($name:ty)?)),+ $(,)?) => {
        $(impl ser::$trait for Probe {
            type Ok = ();
            type Error = Met;
            fn $method<T: Serialize + ?Sized>(&mut self, $(_: $name,)? value: &T) -> Result<(), Met> {
                value.serialize(*self)
            }
            fn end(self) -> Result<(), Met> {
                Ok(())
            }
        })+
    };
}

walks! {
    SerializeSeq: serialize_element(),
    SerializeTuple: serialize_element(),
    SerializeTupleStruct: serialize_field(),
    SerializeTupleVariant: serialize_field(),
    SerializeStruct: serialize_field(&'static str),
    SerializeStructVariant: serialize_field(&'static str),
}

impl ser::SerializeMap for Probe {
    type Ok = ();
    type Error = Met;

    /// Keys are text when they are stored.
    fn serialize_key<T: Serialize + ?Sized>(&mut self, _: &T) -> Result<(), Met> {
        Ok(())
    }
    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Met> {
        value.serialize(*self)
    }
    fn end(self) -> Result<(), Met> {
        Ok(())
    }
}
