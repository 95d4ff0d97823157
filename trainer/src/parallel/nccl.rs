//! Processes on GPUs, one each, over NCCL.

use anyhow::{Result, anyhow};
use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::cudarc::nccl::{Comm, Id, ReduceOp, result::NcclError};
use candle_core::{CpuStorage, CudaStorage, Device, InplaceOp1, Layout, Tensor};

use super::Place;
use super::rendezvous::Rendezvous;

/// All processes, each with its GPU.
pub struct Ring {
    communicator: Wire,
    rendezvous: Rendezvous,
    device: Device,
}

/// NCCL's communicator, on the stream of candle's device.
struct Wire(Comm);

impl Ring {
    /// Joins them; process 0 is found at `place`'s master.
    pub fn join(place: &Place, device: &Device) -> Result<Self> {
        let token = || Ok(Id::new().map_err(failed)?.internal().map(|byte| byte as u8));
        let fail = |message: &str| {
            eprintln!("trainer: {message}");
            // The other threads may wait in NCCL for ever.
            std::process::exit(2);
        };
        let (rendezvous, token) = Rendezvous::meet(place.rank, place.size, place.master()?, token, fail)?;
        let stream = device.as_cuda_device()?.cuda_stream();
        let id = Id::uninit(token.map(|byte| byte as std::ffi::c_char));
        let communicator = Comm::from_rank(stream, place.rank, place.size, id).map_err(failed)?;
        Ok(Self { communicator: Wire(communicator), rendezvous, device: device.clone() })
    }

    /// Adds a flat f32 tensor up over all.
    pub fn sum_tensor(&self, flat: &Tensor) -> Result<Tensor> {
        let sum = flat.copy()?;
        sum.inplace_op1(&Collective { wire: &self.communicator, broadcast: false })?;
        Ok(sum)
    }

    /// Adds `values` up over all, in f64.
    pub fn sum(&self, values: &mut [f64]) -> Result<()> {
        let sum = Tensor::from_slice(values, values.len(), &self.device)?;
        sum.inplace_op1(&Collective { wire: &self.communicator, broadcast: false })?;
        values.copy_from_slice(&sum.to_vec1::<f64>()?);
        Ok(())
    }

    /// Overwrites `values` by those of process 0.
    pub fn broadcast(&self, values: &mut [f32]) -> Result<()> {
        let all = Tensor::from_slice(values, values.len(), &self.device)?;
        all.inplace_op1(&Collective { wire: &self.communicator, broadcast: true })?;
        values.copy_from_slice(&all.to_vec1::<f32>()?);
        Ok(())
    }

    /// Tells the others what went wrong here, or that this process is done.
    pub fn leave(&self, error: Option<&anyhow::Error>) {
        self.rendezvous.leave(&error.map_or_else(String::new, |error| format!("{error:#}")));
    }
}

fn failed(error: NcclError) -> anyhow::Error {
    anyhow!("NCCL: {error:?}")
}

/// A whole contiguous tensor becomes its sum over all processes, or process 0's.
struct Collective<'a> {
    wire: &'a Wire,
    broadcast: bool,
}

impl InplaceOp1 for Collective<'_> {
    fn name(&self) -> &'static str {
        "collective"
    }

    fn cpu_fwd(&self, _: &mut CpuStorage, _: &Layout) -> candle_core::Result<()> {
        candle_core::bail!("NCCL takes tensors of the GPU")
    }

    fn cuda_fwd(&self, storage: &mut CudaStorage, layout: &Layout) -> candle_core::Result<()> {
        if layout.contiguous_offsets() != Some((0, layout.shape().elem_count())) {
            candle_core::bail!("NCCL takes whole tensors");
        }
        let comm = &self.wire.0;
        let done = match (storage.dtype(), self.broadcast) {
            (candle_core::DType::F32, true) => comm.broadcast_in_place(storage.as_cuda_slice_mut::<f32>()?, 0),
            (candle_core::DType::F32, false) => {
                comm.all_reduce_in_place(storage.as_cuda_slice_mut::<f32>()?, &ReduceOp::Sum)
            }
            (candle_core::DType::F64, false) => {
                comm.all_reduce_in_place(storage.as_cuda_slice_mut::<f64>()?, &ReduceOp::Sum)
            }
            (other, _) => candle_core::bail!("NCCL is not used on {other:?}"),
        };
        done.map(|_| ()).map_err(|error| candle_core::Error::msg(format!("NCCL: {error:?}")))
    }
}
