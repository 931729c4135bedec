//! Where tensors live and ops run.

use std::fmt;
use std::str::FromStr;

use crate::cuda::Gpu;
use crate::cuda::library::is_driver_absent;
use crate::{Error, Result};

/// A device family.
///
/// `Cpu` runs native f32 kernels whose results for a token do not depend on the batch around it. `Cuda` runs native
/// bf16 kernels on an NVIDIA GPU. `Reference` runs the same ops as burn tensor expressions, with gradients from burn's
/// autodiff; it is the road to burn's other backends and the numerical reference of the native kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Device {
    /// Native kernels on the host's cores.
    #[default]
    Cpu,
    /// Native kernels on the NVIDIA GPU of this number; activations and weights in bf16.
    Cuda(usize),
    /// burn tensors on the backend this build was made with.
    Reference,
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(ordinal) => write!(f, "cuda:{ordinal}"),
            Self::Reference => f.write_str("reference"),
        }
    }
}

impl FromStr for Device {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let unknown = || Error::Device {
            name: name.to_owned(),
            why: "not one of auto, cpu, cuda, cuda:0 (cuda:1, ..), reference".to_owned(),
        };
        match name {
            "portable" => Err(Error::Device {
                name: name.to_owned(),
                why: "the device of burn's CPU backend is called reference now".to_owned(),
            }),
            "auto" => Ok(Self::auto().0),
            "cpu" => Ok(Self::Cpu),
            "reference" => Ok(Self::Reference),
            "cuda" => Ok(Self::Cuda(0)),
            _ => {
                let ordinal = name.strip_prefix("cuda:").ok_or_else(unknown)?;
                Ok(Self::Cuda(ordinal.parse().map_err(|_| unknown())?))
            }
        }
    }
}

impl Device {
    /// Waits for the work that was started on it; what reads a clock has to.
    ///
    /// # Errors
    /// When work failed on a GPU.
    pub fn synchronize(self) -> Result<()> {
        match self {
            Self::Cpu | Self::Reference => Ok(()),
            Self::Cuda(ordinal) => crate::cuda::Gpu::get(ordinal)?.synchronize(),
        }
    }

    /// The first GPU, or the CPU where there is none or it cannot be used; then with the reason, unless the machine has
    /// no driver for one.
    #[must_use]
    pub fn auto() -> (Self, Option<Error>) {
        match Gpu::with_libraries(0) {
            Ok(_) => (Self::Cuda(0), None),
            Err(e) => (Self::Cpu, Some(e).filter(|e| !is_driver_absent(e))),
        }
    }

    /// Bytes of a value of activations and weights.
    #[must_use]
    pub fn value_bytes(self) -> usize {
        match self {
            Self::Cpu | Self::Reference => 4,
            Self::Cuda(_) => 2,
        }
    }
}
