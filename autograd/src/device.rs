//! Where tensors live and ops run.

use std::fmt;
use std::str::FromStr;

use crate::capabilities::{BatchInvariance, Capabilities};
use crate::cuda::library::is_driver_absent;
use crate::cuda::{self, Gpu, Mode};
use crate::{Error, Result, cpu, reference};

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
        self.gpu()?.map_or(Ok(()), Gpu::synchronize)
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
        self.capabilities().value_bytes
    }

    /// What it can do, and what is chosen for it where nothing is said.
    #[must_use]
    pub fn capabilities(self) -> &'static Capabilities {
        match self {
            Self::Cpu => &cpu::CAPABILITIES,
            Self::Cuda(_) => &cuda::CAPABILITIES,
            Self::Reference => &reference::CAPABILITIES,
        }
    }

    /// The GPU that its native kernels run on, if they run on one; the first call starts it.
    ///
    /// # Errors
    /// As [`Gpu::get`].
    pub fn gpu(self) -> Result<Option<&'static Gpu>> {
        match self {
            Self::Cpu | Self::Reference => Ok(None),
            Self::Cuda(ordinal) => Gpu::get(ordinal).map(Some),
        }
    }

    /// Loads what every op on it needs.
    ///
    /// # Errors
    /// A missing GPU, driver or library.
    pub fn prepare(self) -> Result<()> {
        match self {
            Self::Cpu | Self::Reference => Ok(()),
            Self::Cuda(ordinal) => Gpu::with_libraries(ordinal).map(drop),
        }
    }

    /// `cpu`, `reference`, or a GPU's number and name.
    ///
    /// # Errors
    /// A GPU that cannot be used.
    pub fn describe(self) -> Result<String> {
        Ok(self.gpu()?.map_or_else(|| self.to_string(), |gpu| format!("{self} ({})", gpu.info().name)))
    }

    /// Makes results independent of the batch, or keeps the speed of those that are not, as long as the value lives.
    ///
    /// # Errors
    /// A device whose results always depend on the batch; a GPU that is held in the other mode, or cannot be used.
    pub fn hold_mode(self, deterministic: bool) -> Result<Option<Mode>> {
        if deterministic && self.capabilities().batch_invariance == BatchInvariance::Unsupported {
            let why = "results depend on the batch there; deterministic runs on cpu (always) and cuda".to_owned();
            return Err(Error::Device { name: self.to_string(), why });
        }
        self.gpu()?.map(|gpu| gpu.hold_mode(deterministic)).transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_on_the_host_needs_no_gpu() {
        for device in [Device::Cpu, Device::Reference] {
            assert!(device.gpu().expect("none is asked for").is_none());
            assert!(!device.capabilities().own_memory && (device.capabilities().block_bytes)(3) == 3);
            assert_eq!(device.describe().expect("has a name"), device.to_string());
            device.prepare().expect("nothing to load");
        }
    }

    #[test]
    fn batch_invariance_is_refused_where_it_cannot_be_had() {
        assert!(Device::Cpu.hold_mode(true).expect("always so").is_none());
        assert!(Device::Reference.hold_mode(false).expect("as it is").is_none());
        let refused = Device::Reference.hold_mode(true).err().expect("cannot").to_string();
        assert!(refused.contains("reference") && refused.contains("depend on the batch"), "{refused}");
    }

    #[test]
    fn the_memory_plan_counts_the_blocks_that_a_gpu_hands_out() {
        let cuda = Device::Cuda(0).capabilities();
        assert!((cuda.block_bytes)(1) > 1);
        assert_eq!((cuda.block_bytes)(8 << 20), 8 << 20);
    }
}
