//! Adapters as bytes: ranks that do not read the files get them so.

use autograd::{Device, Tensor};
use serde::de::Error as _;
use serde::ser::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{Adapter, LoraWeights};

/// A and B of a module with their values on the host.
#[derive(Serialize, Deserialize)]
struct EncodedLoraWeights {
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

/// Per layer, A and B or nothing for each module.
type EncodedLayers = Vec<Vec<Option<EncodedLoraWeights>>>;

impl Serialize for Adapter {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let matrix = |tensor: &Tensor| -> Result<EncodedMatrix, S::Error> {
            Ok(EncodedMatrix { shape: tensor.shape(), values: tensor.read().map_err(S::Error::custom)? })
        };
        let encode = |branch: &LoraWeights| -> Result<EncodedLoraWeights, S::Error> {
            Ok(EncodedLoraWeights { a: matrix(&branch.a)?, b: matrix(&branch.b)?, scale: branch.scale })
        };
        let layer = |branches: &[Option<LoraWeights>; 7]| -> Result<Vec<Option<EncodedLoraWeights>>, S::Error> {
            branches.iter().map(|branch| branch.as_ref().map(encode).transpose()).collect()
        };
        self.layers.iter().map(layer).collect::<Result<EncodedLayers, _>>()?.serialize(serializer)
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
        let decode = |branch: EncodedLoraWeights| -> Result<LoraWeights, D::Error> {
            Ok(LoraWeights { a: tensor(branch.a)?, b: tensor(branch.b)?, scale: branch.scale })
        };
        let layer = |branches: Vec<Option<EncodedLoraWeights>>| -> Result<[Option<LoraWeights>; 7], D::Error> {
            let branches = branches.into_iter().map(|branch| branch.map(decode).transpose());
            let branches: Vec<Option<LoraWeights>> = branches.collect::<Result<_, _>>()?;
            branches.try_into().map_err(|_| D::Error::custom("a layer has another number of projections"))
        };
        let layers = EncodedLayers::deserialize(deserializer)?.into_iter().map(layer).collect::<Result<_, _>>()?;
        Ok(Self { layers })
    }
}
