//! The one error type of this crate.

/// Result of an op.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What an op or the tape refuses.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Operands do not fit together.
    #[error("{op}: {what}, got {got:?}")]
    Shape {
        /// The op that refused.
        op: &'static str,
        /// What it expected of them.
        what: &'static str,
        /// Shapes of the operands, in order.
        got: Vec<[usize; 2]>,
    },
    /// Host data does not fill the shape.
    #[error("tensor of shape {shape:?} needs {} values, got {len}", shape[0] * shape[1])]
    Length {
        /// Rows and columns asked for.
        shape: [usize; 2],
        /// Values given.
        len: usize,
    },
    /// Operands live on different devices.
    #[error("{op}: operands on different devices: {left} and {right}")]
    DeviceMismatch {
        /// The op that refused.
        op: &'static str,
        /// Device of the first operand.
        left: String,
        /// Device of the operand that differs.
        right: String,
    },
    /// An operand has the wrong memory layout.
    #[error("{op}: operand {index} must be {expected}")]
    Layout {
        /// The op that refused.
        op: &'static str,
        /// Position among the op's inputs.
        index: usize,
        /// The layout it needs.
        expected: &'static str,
    },
    /// An index points outside its table.
    #[error("{op}: {what} {index} is outside 0..{limit}")]
    Index {
        /// The op that refused.
        op: &'static str,
        /// What the index names.
        what: &'static str,
        /// The index.
        index: usize,
        /// First value that is too large.
        limit: usize,
    },
    /// A constant of an op is outside its domain.
    #[error("{op}: {what} is {value}, must be {expected}")]
    Domain {
        /// The op that refused.
        op: &'static str,
        /// Name of the constant.
        what: &'static str,
        /// Its value.
        value: f64,
        /// The domain.
        expected: &'static str,
    },
    /// Backward was asked of a tensor that no recorded op produced.
    #[error("backward: the root tensor was not recorded on this tape; nothing it depends on is watched")]
    NotRecorded,
    /// The named device cannot be used in this build or on this machine.
    #[error("device `{name}`: {why}")]
    Device {
        /// What was asked for.
        name: String,
        /// Why it cannot be had, and what can.
        why: String,
    },
}
