//! `runtime.gradient_checkpointing`: a boolean, or `"auto"`.

use std::fmt;

use runtime::memory::Checkpointing;
use serde::de::{self, Deserialize, Deserializer, Visitor};
use serde::{Serialize, Serializer};

/// Which layers are recomputed in the backward pass, as in a recipe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct GradientCheckpointing(pub Checkpointing);

impl Serialize for GradientCheckpointing {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Checkpointing::Auto => serializer.serialize_str("auto"),
            Checkpointing::On => serializer.serialize_bool(true),
            Checkpointing::Off => serializer.serialize_bool(false),
        }
    }
}

impl<'de> Deserialize<'de> for GradientCheckpointing {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct WrittenCheckpointing;
        impl Visitor<'_> for WrittenCheckpointing {
            type Value = GradientCheckpointing;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("true, false or \"auto\"")
            }

            fn visit_bool<E: de::Error>(self, on: bool) -> Result<GradientCheckpointing, E> {
                Ok(GradientCheckpointing(if on { Checkpointing::On } else { Checkpointing::Off }))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<GradientCheckpointing, E> {
                match text {
                    "auto" => Ok(GradientCheckpointing(Checkpointing::Auto)),
                    other => Err(E::invalid_value(de::Unexpected::Str(other), &self)),
                }
            }
        }
        deserializer.deserialize_any(WrittenCheckpointing)
    }
}
