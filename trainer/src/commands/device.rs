//! Where a command computes, and how exactly.

use std::str::FromStr;

use anyhow::{Result, ensure};
use candle_core::{DType, Device};
use clap::{Args, ValueEnum};

use crate::parallel::Place;

/// The device.
#[derive(Debug, Args)]
pub struct DeviceArgs {
    /// Where to compute: cpu, cuda or cuda:N [default: cuda if this program is built for it and there is a GPU, otherwise cpu]; of several
    /// processes of a pretraining each takes the GPU of its number
    #[arg(long, value_name = "DEVICE")]
    device: Option<Named>,
}

/// How activations are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Precision {
    /// 32 bits
    #[default]
    F32,
    /// 16 bits, with the range of f32 and 8 bits of mantissa
    Bf16,
}

impl Precision {
    /// The type of the tensors.
    ///
    /// # Errors
    /// If `device` has no such numbers.
    pub fn on(self, device: &Device) -> Result<DType> {
        ensure!(self == Self::F32 || device.is_cuda(), "--precision bf16: takes a GPU; see --device");
        Ok(match self {
            Self::F32 => DType::F32,
            Self::Bf16 => DType::BF16,
        })
    }
}

/// A device by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Named {
    Cpu,
    Cuda(Option<usize>),
}

impl FromStr for Named {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match (text, text.strip_prefix("cuda:").map(str::parse)) {
            ("cpu", _) => Ok(Self::Cpu),
            ("cuda", _) => Ok(Self::Cuda(None)),
            (_, Some(Ok(number))) => Ok(Self::Cuda(Some(number))),
            _ => Err("is not cpu, cuda or cuda:N".into()),
        }
    }
}

impl DeviceArgs {
    /// The device, for the process at `place` of several.
    pub fn open(&self, place: Option<&Place>) -> Result<Device> {
        let local = place.map_or(0, |place| place.local);
        match self.device {
            Some(Named::Cpu) => Ok(Device::Cpu),
            Some(Named::Cuda(number)) => gpu(number.unwrap_or(local)),
            None if candle_core::utils::cuda_is_available() => gpu(local),
            None => Ok(Device::Cpu),
        }
    }
}

#[cfg(feature = "cuda")]
fn gpu(number: usize) -> Result<Device> {
    anyhow::Context::with_context(crate::ops::open_gpu(number), || format!("cannot open GPU {number}"))
}

#[cfg(not(feature = "cuda"))]
fn gpu(number: usize) -> Result<Device> {
    anyhow::bail!("cannot open GPU {number}: this program was built without CUDA (cargo feature cuda)")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_named() {
        assert_eq!("cpu".parse(), Ok(Named::Cpu));
        assert_eq!("cuda".parse(), Ok(Named::Cuda(None)));
        assert_eq!("cuda:3".parse(), Ok(Named::Cuda(Some(3))));
        for wrong in ["cuda:", "cuda:x", "gpu", ""] {
            assert!(wrong.parse::<Named>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn bf16_takes_a_gpu() {
        assert!(Precision::Bf16.on(&Device::Cpu).unwrap_err().to_string().contains("--precision bf16"));
        assert_eq!(Precision::F32.on(&Device::Cpu).unwrap(), DType::F32);
    }
}
