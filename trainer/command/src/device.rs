//! `--device` and `runtime.device`.

use std::str::FromStr;

use autograd::{BatchInvariance, Device};

use crate::progress::Progress;
use crate::{Error, Result};

/// The device that was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceChoice {
    /// The device.
    pub device: Device,
    /// Why `auto` left a GPU's driver unused.
    note: Option<String>,
}

impl FromStr for DeviceChoice {
    type Err = autograd::Error;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        if name != "auto" {
            return Ok(Self { device: name.parse()?, note: None });
        }
        let (device, reason) = Device::auto();
        Ok(Self { device, note: reason.map(|why| format!("note: running on the CPU: {why}")) })
    }
}

impl DeviceChoice {
    /// Says what has to be said, and refuses a GPU that cannot be used, or not `deterministic`, before anything is loaded.
    ///
    /// # Errors
    /// A missing GPU, driver or library; a device that cannot be deterministic.
    pub fn start(&self, deterministic: bool, progress: Progress) -> Result<()> {
        if deterministic && self.device.capabilities().batch_invariance == BatchInvariance::Unsupported {
            let rule = "left out on reference, where results depend on the batch (cpu always is, cuda can be)";
            return Err(Error::value("--deterministic", true, rule));
        }
        if let Some(note) = &self.note {
            progress.line(note);
        }
        self.device.prepare().map_err(runtime::Error::from)?;
        Ok(())
    }
}
