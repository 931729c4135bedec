//! What a task's data is made of.

use serde_json::{Map, Value};

/// One document, as its data file has it.
pub type Doc = Map<String, Value>;
