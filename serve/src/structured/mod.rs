//! Response formats: grammars, their limits, and the masks that hold a generation to them.

pub(crate) mod closed_objects;
pub(crate) mod constraint;
pub(crate) mod grammar;
pub(crate) mod grammar_limits;
pub(crate) mod structured_outputs;
