//! Adapters as bytes: ranks that do not read the files get them so.

use autograd::{Device, Tensor};
use serde::de::Error as _;
use serde::ser::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{Adapter, LoraWeights};
use crate::model::ParamId;

/// A and B of a module with their values on the host.
#[derive(Serialize, Deserialize)]
struct EncodedLoraWeights {
    weight: u32,
    module: String,
    a: EncodedMatrix,
    b: EncodedMatrix,
    scale: f32,
}

/// A matrix in row-major order.
#[derive(Serialize, Deserialize)]
struct EncodedMatrix {
    shape: [usize; 2],
    values: Vec<f32>,
}

impl Serialize for Adapter {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let matrix = |tensor: &Tensor| -> Result<EncodedMatrix, S::Error> {
            Ok(EncodedMatrix { shape: tensor.shape(), values: tensor.read().map_err(S::Error::custom)? })
        };
        let encode = |(weight, lora): (&ParamId, &LoraWeights)| -> Result<EncodedLoraWeights, S::Error> {
            let (module, scale) = (lora.module.clone(), lora.scale);
            Ok(EncodedLoraWeights { weight: weight.0, module, a: matrix(&lora.a)?, b: matrix(&lora.b)?, scale })
        };
        self.modules.iter().map(encode).collect::<Result<Vec<_>, _>>()?.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Adapter {
    /// On the host.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let tensor = |matrix: EncodedMatrix| {
            let [rows, columns] = matrix.shape;
            if rows.checked_mul(columns) != Some(matrix.values.len()) {
                return Err(D::Error::custom("a matrix has another number of values than its shape"));
            }
            Tensor::weight(Device::Cpu, matrix.values, matrix.shape).map_err(D::Error::custom)
        };
        let decode = |lora: EncodedLoraWeights| -> Result<(ParamId, LoraWeights), D::Error> {
            let EncodedLoraWeights { weight, module, a, b, scale } = lora;
            Ok((ParamId(weight), LoraWeights { module, a: tensor(a)?, b: tensor(b)?, scale }))
        };
        let encoded = Vec::<EncodedLoraWeights>::deserialize(deserializer)?;
        Ok(Self { modules: encoded.into_iter().map(decode).collect::<Result<_, _>>()? })
    }
}
