//! Why an order is refused.

/// The version of the encoding of orders; ranks of one program version have the same.
pub(crate) const ORDER_VERSION: u16 = 1;

/// Bytes that are no order that comes next.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OrderError {
    /// Another version of the encoding.
    #[error("an order is encoded in version {got}, this program reads {ORDER_VERSION}; run one version on all ranks")]
    Version {
        /// The version in the order.
        got: u16,
    },
    /// Orders were lost or came twice.
    #[error("order {got} came where {want} is next")]
    Number {
        /// The number in the order.
        got: u64,
        /// The next number.
        want: u64,
    },
    /// The bytes are damaged.
    #[error("order {number}: {detail}")]
    Damaged {
        /// The order's number, 0 where it cannot be read.
        number: u64,
        /// What cannot be read.
        detail: String,
    },
}
