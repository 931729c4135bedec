//! Orders: everything that a rank does, as values that are encoded.
//!
//! The engine plans on one rank alone (schedulers, sinks, masks, clocks) and executes on any: the [`super::executor::Executor`]
//! sees nothing but orders, so that ranks that get the same orders hold the same state. What an order needs is checked before it
//! is sent: an order fails only for reasons that all ranks share. Orders are numbered from 1; the number is what errors quote.

mod loss;
mod step;

use serde::{Deserialize, Serialize};

use crate::error::{ORDER_VERSION as VERSION, OrderError};
use crate::ids::ModelId;
use crate::model::Adapter;
use crate::request::{OptimStep, TrainState};

pub(crate) use loss::TrainOrder;
pub(crate) use step::{BeginSequence, ScoreRow, ScoreTask, StepOrder};

/// One thing that every rank does.
#[derive(Serialize, Deserialize)]
pub(crate) enum Order {
    /// One step of a base model's continuous batch.
    Step(StepOrder),
    /// A micro-batch through the student and, where the loss needs one, the teacher.
    ForwardBackward(TrainOrder),
    /// Clips and applies the accumulated gradients.
    OptimStep(OptimStep),
    /// Runs requests of the first model with the trained weights from now on.
    Publish,
    /// Copies weights and optimizer state to the host.
    Export,
    /// Puts them back.
    Restore(TrainState),
    /// Copies an adapter to the device, on a base model.
    AddAdapter { base: ModelId, id: ModelId, adapter: Adapter },
    /// Puts an adapter in the place of another one.
    ReplaceAdapter { model: ModelId, adapter: Adapter },
    /// Frees an adapter.
    RemoveAdapter { model: ModelId },
}

impl Order {
    /// Version, number and content.
    pub(crate) fn encode(&self, number: u64) -> Result<Vec<u8>, OrderError> {
        let detail = |e: postcard::Error| OrderError::Damaged { number, detail: e.to_string() };
        let header = postcard::to_allocvec(&(VERSION, number)).map_err(detail)?;
        postcard::to_extend(self, header).map_err(detail)
    }

    /// The order of number `want`.
    ///
    /// # Errors
    /// Another version or number, bytes that are damaged.
    pub(crate) fn decode(bytes: &[u8], want: u64) -> Result<Self, OrderError> {
        let damaged = |number| move |e: postcard::Error| OrderError::Damaged { number, detail: e.to_string() };
        let ((version, number), content) = postcard::take_from_bytes::<(u16, u64)>(bytes).map_err(damaged(0))?;
        if version != VERSION {
            return Err(OrderError::Version { got: version });
        }
        if number != want {
            return Err(OrderError::Number { got: number, want });
        }
        let (order, rest) = postcard::take_from_bytes(content).map_err(damaged(number))?;
        if !rest.is_empty() {
            return Err(OrderError::Damaged { number, detail: format!("{} bytes follow its end", rest.len()) });
        }
        Ok(order)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_version_a_gap_and_damaged_bytes_are_refused() {
        let bytes = Order::Publish.encode(7).expect("encoded");
        assert!(matches!(Order::decode(&bytes, 7), Ok(Order::Publish)));
        let refused = |bytes: &[u8], want| Order::decode(bytes, want).err().expect("refused");
        assert_eq!(refused(&bytes, 8), OrderError::Number { got: 7, want: 8 });
        let newer = [&[VERSION as u8 + 1], &bytes[1..]].concat();
        assert_eq!(refused(&newer, 7), OrderError::Version { got: VERSION + 1 });
        let longer = [&bytes[..], &[0]].concat();
        assert!(matches!(refused(&longer, 7), OrderError::Damaged { number: 7, .. }));
        for length in 0..bytes.len() {
            assert!(matches!(refused(&bytes[..length], 7), OrderError::Damaged { .. }), "{length} bytes");
        }
    }
}
