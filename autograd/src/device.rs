//! Where tensors live and ops run.

use std::fmt;
use std::str::FromStr;

use crate::{Error, Result};

/// A device family.
///
/// `Cpu` runs native f32 kernels whose results for a token do not depend on the batch around it. `Portable` runs the
/// same ops as burn tensor expressions, with gradients from burn's autodiff; it is the road to burn's other backends
/// and the numerical reference of the native kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Device {
    /// Native kernels on the host's cores.
    #[default]
    Cpu,
    /// burn tensors on the backend this build was made with.
    Portable,
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cpu => "cpu",
            Self::Portable => "portable",
        })
    }
}

impl FromStr for Device {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "auto" | "cpu" => Ok(Self::Cpu),
            "portable" => Ok(Self::Portable),
            _ => Err(Error::Device { name: name.to_owned(), why: "not one of auto, cpu, portable".to_owned() }),
        }
    }
}
