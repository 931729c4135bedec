//! A micro-batch with its loss, which encodes itself.

use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::Result;
use crate::request::{TrainRequest, TrainSequence};
use crate::train::{DecodeLoss, Loss, TeacherSource};

/// A [`TrainRequest`].
#[derive(Serialize, Deserialize)]
pub(crate) struct TrainOrder {
    sequences: Vec<TrainSequence>,
    loss: OrderLoss,
    normalizer: f64,
    backward: bool,
    dropout_key: u64,
    teacher: Option<TeacherSource>,
}

/// A loss, or its bytes, which the program decodes.
enum OrderLoss {
    Here(Arc<dyn Loss>),
    Encoded(Vec<u8>),
}

impl Serialize for OrderLoss {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Here(loss) => loss.encode().serialize(serializer),
            Self::Encoded(bytes) => bytes.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for OrderLoss {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Vec::deserialize(deserializer).map(Self::Encoded)
    }
}

impl TrainOrder {
    /// The request, with the loss that `decode` makes of its bytes where it has been encoded.
    ///
    /// # Errors
    /// Bytes that are no loss of the program.
    pub(crate) fn into_request(self, decode: DecodeLoss) -> Result<TrainRequest> {
        let Self { sequences, loss, normalizer, backward, dropout_key, teacher } = self;
        let loss = match loss {
            OrderLoss::Here(loss) => loss,
            OrderLoss::Encoded(bytes) => decode(&bytes)?,
        };
        Ok(TrainRequest { sequences, loss, normalizer, backward, dropout_key, teacher })
    }
}

impl From<TrainRequest> for TrainOrder {
    fn from(request: TrainRequest) -> Self {
        let TrainRequest { sequences, loss, normalizer, backward, dropout_key, teacher } = request;
        Self { sequences, loss: OrderLoss::Here(loss), normalizer, backward, dropout_key, teacher }
    }
}
