//! `--device` and `runtime.device`.

use std::str::FromStr;

use autograd::Device;
use autograd::cuda::Gpu;

use crate::Result;
use crate::progress::Progress;

/// The device that was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// The device.
    pub device: Device,
    /// Why `auto` left a GPU's driver unused.
    note: Option<String>,
}

impl FromStr for Choice {
    type Err = autograd::Error;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        if name != "auto" {
            return Ok(Self { device: name.parse()?, note: None });
        }
        let (device, reason) = Device::auto();
        Ok(Self { device, note: reason.map(|why| format!("note: running on the CPU: {why}")) })
    }
}

impl Choice {
    /// Says what has to be said, and refuses a GPU that cannot be used, before anything is loaded.
    ///
    /// # Errors
    /// A missing card, driver or library.
    pub fn start(&self, progress: Progress) -> Result<()> {
        if let Some(note) = &self.note {
            progress.line(note);
        }
        if let Device::Cuda(ordinal) = self.device {
            Gpu::with_libraries(ordinal).map_err(runtime::Error::from)?;
        }
        Ok(())
    }
}
