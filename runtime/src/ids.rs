//! Names of models and requests.

use serde::{Deserialize, Serialize};
use std::fmt;

/// Names a model of the runtime: one of [`crate::request::RuntimeSpec::models`] by its place, or an adapter that was loaded on
/// one of them, by a number that is never given twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ModelId(pub u32);

impl ModelId {
    /// The first model of a specification: the student, or the only one.
    pub const STUDENT: Self = Self(0);
    /// The second model of a specification, where it is the student's teacher.
    pub const TEACHER: Self = Self(1);
}

impl fmt::Display for ModelId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "model {}", self.0)
    }
}

/// Names one request for its whole life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RequestId(pub u64);
