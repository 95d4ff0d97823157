//! The GPU as a [`Machine`], and the operations of candle that run on it.
//!
//! Everything goes into the one stream of candle's device, so memory that is given back is used again only after the
//! work that was started before.

#![allow(unsafe_code)]

use std::ffi::c_void;
use std::sync::Mutex;

use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::cublas::{result::gemm_ex, sys as blas};
use candle_core::cuda_backend::cudarc::driver::{CudaSlice, DevicePtr, DeviceRepr, LaunchConfig, PushKernelArg};
use candle_core::op::BackpropOp;
use candle_core::{
    CpuStorage, CudaDevice, CudaStorage, CustomOp2, CustomOp3, DType, Device, Layout, Result, Shape, Storage, Tensor,
};
use half::bf16;

use super::chain::Trace;
use super::linear::{LayerNorm, Linear};
use super::{Arg, BLOCK, DeviceLayer, Kind, Launcher, Machine, Matrix, Memory, View, losses};

/// The kernels, from `build.rs`.
const KERNELS: &str = include_str!(concat!(env!("OUT_DIR"), "/kernels.ptx"));

/// GPU `number`, for use by [`crate::ops`] and candle.
pub fn open(number: usize) -> Result<Device> {
    let device = Device::new_cuda_with_stream(number)?;
    // SAFETY: all work of this program goes into this device's one stream, so no use has to wait for another.
    unsafe { device.as_cuda_device()?.disable_event_tracking() };
    Ok(device)
}

struct Gpu {
    device: CudaDevice,
}

/// A kernel's argument as it is handed over.
enum Value {
    Long(u64),
    Int(i32),
    Float(f32),
}

impl Gpu {
    fn own<T: DeviceRepr + Send + Sync + 'static>(&self, kind: Kind, slice: CudaSlice<T>) -> Memory {
        let (address, _) = slice.device_ptr(&self.device.cuda_stream());
        Memory::new(address, kind, slice.len(), Box::new(slice))
    }
}

impl Machine for Gpu {
    fn alloc(&self, kind: Kind, len: usize) -> Result<Memory> {
        // SAFETY: the values are undefined until a kernel or product writes them; each kernel's caller sees to that, and
        // the tests run all of it on memory that starts as not-a-number.
        unsafe {
            Ok(match kind {
                Kind::F32 => self.own(kind, self.device.alloc::<f32>(len)?),
                Kind::Bf16 => self.own(kind, self.device.alloc::<bf16>(len)?),
                Kind::U32 => self.own(kind, self.device.alloc::<u32>(len)?),
            })
        }
    }

    fn upload(&self, values: &[u32]) -> Result<Memory> {
        Ok(self.own(Kind::U32, self.device.clone_htod(values)?))
    }

    fn launch(&self, kernel: &str, [x, y]: [usize; 2], arguments: &[Arg]) -> Result<()> {
        let value = |argument: &Arg| {
            Ok(match argument {
                Arg::Address(address) => Value::Long(*address),
                Arg::Null => Value::Long(0),
                Arg::Int(value) => Value::Int(Arg::int(*value)?),
                Arg::Size(value) => Value::Long(*value as u64),
                Arg::Float(value) => Value::Float(*value),
            })
        };
        let values = arguments.iter().map(value).collect::<Result<Vec<_>>>()?;
        let function = self.device.get_or_load_custom_func(kernel, "nadir", KERNELS)?;
        let mut builder = function.builder();
        for value in &values {
            match value {
                Value::Long(value) => builder.arg(value),
                Value::Int(value) => builder.arg(value),
                Value::Float(value) => builder.arg(value),
            };
        }
        let grid_dim = (Arg::int(x)? as u32, Arg::int(y)? as u32, 1);
        let config = LaunchConfig { grid_dim, block_dim: (BLOCK[0] as u32, BLOCK[1] as u32, 1), shared_mem_bytes: 0 };
        // SAFETY: the arguments are what the kernel's signature says and the memory is as large as it takes: the tests
        // run the same calls on the host, with guards around all memory. The memory stays until the stream has passed.
        unsafe { builder.launch(config) }.w()?;
        Ok(())
    }

    fn multiply(&self, out: View, [m, n, k]: [usize; 3], left: Matrix, right: Matrix, add: bool) -> Result<()> {
        let spans = |a: &Matrix, rows: usize, columns: usize| {
            let [i, j] = if a.transposed { [columns, rows] } else { [rows, columns] };
            i > 0 && j > 0 && (i - 1) * a.columns + j <= a.view.len()
        };
        let kinds = left.view.kind() == right.view.kind() && [Kind::F32, left.view.kind()].contains(&out.kind());
        if m * n > out.len() || !spans(&left, m, k) || !spans(&right, k, n) || !kinds {
            candle_core::bail!("a product of {m} x {k} and {k} x {n} does not fit its memory");
        }
        let kind = |view: View| match view.kind() {
            Kind::Bf16 => blas::cudaDataType::CUDA_R_16BF,
            _ => blas::cudaDataType::CUDA_R_32F,
        };
        let turned = |a: &Matrix| match a.transposed {
            false => blas::cublasOperation_t::CUBLAS_OP_N,
            true => blas::cublasOperation_t::CUBLAS_OP_T,
        };
        let (alpha, beta) = (1f32, if add { 1f32 } else { 0.0 });
        let handle = self.device.cublas_handle();
        // Matrices of cuBLAS lie column by column: it computes the transpose of the product, from the transposes.
        // SAFETY: all elements lie in their memory, as checked above; the handle works on the device's stream.
        unsafe {
            gemm_ex(
                *handle.handle(),
                turned(&right),
                turned(&left),
                Arg::int(n)?,
                Arg::int(m)?,
                Arg::int(k)?,
                (&raw const alpha).cast(),
                right.view.address() as *const c_void,
                kind(right.view),
                Arg::int(right.columns)?,
                left.view.address() as *const c_void,
                kind(left.view),
                Arg::int(left.columns)?,
                (&raw const beta).cast(),
                out.address() as *mut c_void,
                kind(out),
                Arg::int(n)?,
                blas::cublasComputeType_t::CUBLAS_COMPUTE_32F,
                blas::cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
            )
        }
        .map_err(candle_core::Error::wrap)
    }
}

/// The values of a contiguous tensor.
fn view<'a>(storage: &'a CudaStorage, layout: &Layout) -> Result<View<'a>> {
    let Some((start, end)) = layout.contiguous_offsets() else { candle_core::bail!("expected a contiguous tensor") };
    let stream = storage.device().cuda_stream();
    let (kind, address, len) = match storage.dtype() {
        DType::F32 => {
            let slice = storage.as_cuda_slice::<f32>()?;
            (Kind::F32, slice.device_ptr(&stream).0, slice.len())
        }
        DType::BF16 => {
            let slice = storage.as_cuda_slice::<bf16>()?;
            (Kind::Bf16, slice.device_ptr(&stream).0, slice.len())
        }
        DType::U32 => {
            let slice = storage.as_cuda_slice::<u32>()?;
            (Kind::U32, slice.device_ptr(&stream).0, slice.len())
        }
        other => candle_core::bail!("a fused operation takes f32, bf16 or u32, not {other:?}"),
    };
    View::new(address, kind, len).part(start, end - start)
}

fn storage(memory: Memory, device: &CudaDevice) -> Result<CudaStorage> {
    let kind = memory.kind();
    let owner = memory.into_owner();
    let lost = |_| candle_core::Error::msg("a memory is not what it was made as");
    Ok(match kind {
        Kind::F32 => CudaStorage::wrap_cuda_slice(*owner.downcast::<CudaSlice<f32>>().map_err(lost)?, device.clone()),
        Kind::Bf16 => CudaStorage::wrap_cuda_slice(*owner.downcast::<CudaSlice<bf16>>().map_err(lost)?, device.clone()),
        Kind::U32 => CudaStorage::wrap_cuda_slice(*owner.downcast::<CudaSlice<u32>>().map_err(lost)?, device.clone()),
    })
}

/// Calls `f` with launcher, device and the values of the tensors; activations are of the first one's kind.
fn on_gpu<const N: usize, R>(
    tensors: [&Tensor; N],
    f: impl FnOnce(&Launcher, &CudaDevice, [View; N]) -> Result<R>,
) -> Result<R> {
    let contiguous = tensors.iter().map(|t| t.contiguous()).collect::<Result<Vec<_>>>()?;
    let guards: Vec<_> = contiguous.iter().map(Tensor::storage_and_layout).collect();
    let device = contiguous[0].device().as_cuda_device()?.clone();
    let mut views = [View::new(0, Kind::F32, 0); N];
    for (to, (storage, layout)) in views.iter_mut().zip(&guards) {
        match &**storage {
            Storage::Cuda(storage) => *to = view(storage, layout)?,
            _ => candle_core::bail!("expected a tensor on the GPU"),
        }
    }
    let gpu = Gpu { device };
    f(&Launcher::new(&gpu, views[0].kind()), &gpu.device, views)
}

fn tensor(memory: Memory, device: &CudaDevice, shape: impl Into<Shape>) -> Result<Tensor> {
    Ok(Tensor::from_storage(Storage::Cuda(storage(memory, device)?), shape, BackpropOp::none(), false))
}

/// Layers one after the other as one operation of candle: the input `[rows, channels]` (or tiles), the parameters.
struct Chained {
    layers: Vec<Box<dyn DeviceLayer>>,
    channels: usize,
    /// Whether a gradient may be asked for.
    track: bool,
    trace: Mutex<Option<Trace>>,
}

/// Passes `x` through the layers; the output has `channels`.
pub fn chained(x: &Tensor, layers: Vec<Box<dyn DeviceLayer>>, flat: &Tensor, channels: usize) -> Result<Tensor> {
    let track = x.track_op() || flat.track_op();
    x.contiguous()?.apply_op2(flat, Chained { layers, channels, track, trace: Mutex::default() })
}

/// See [`crate::ops::elementary::linear`].
pub fn linear(x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
    let (outputs, inputs) = weight.dims2()?;
    let flat = Tensor::cat(&[&weight.flatten_all()?, bias], 0)?;
    chained(x, vec![Box::new(Linear { inputs, outputs })], &flat, outputs)
}

/// See [`crate::ops::elementary::layer_norm`].
pub fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f32) -> Result<Tensor> {
    let channels = weight.dim(0)?;
    chained(x, vec![Box::new(LayerNorm { channels, eps })], &Tensor::cat(&[weight, bias], 0)?, channels)
}

impl Chained {
    fn layers(&self) -> Vec<&dyn DeviceLayer> {
        self.layers.iter().map(|layer| &**layer).collect()
    }
}

impl CustomOp2 for Chained {
    fn name(&self) -> &'static str {
        "chained"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        candle_core::bail!("a chain of the GPU got tensors of the host")
    }

    fn cuda_fwd(&self, x: &CudaStorage, xl: &Layout, p: &CudaStorage, pl: &Layout) -> Result<(CudaStorage, Shape)> {
        let gpu = Gpu { device: x.device().clone() };
        let x = view(x, xl)?;
        let launcher = Launcher::new(&gpu, x.kind());
        let (out, trace) = super::forward(&launcher, &self.layers(), x, view(p, pl)?, self.track)?;
        if let Ok(mut slot) = self.trace.lock() {
            *slot = trace;
        }
        let shape = (out.view().len() / self.channels, self.channels);
        Ok((storage(out, &gpu.device)?, shape.into()))
    }

    fn bwd(&self, x: &Tensor, p: &Tensor, _: &Tensor, g: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let trace = self.trace.lock().map(|mut slot| slot.take()).unwrap_or_default();
        on_gpu([x, p, g], |launcher, device, [x_view, p_view, g_view]| {
            let layers = self.layers();
            // The first backward pass uses up what was kept; a second one computes it again.
            let trace = match trace {
                Some(trace) => trace,
                None => match super::forward(launcher, &layers, x_view, p_view, true)?.1 {
                    Some(trace) => trace,
                    None => candle_core::bail!("a forward pass kept nothing"),
                },
            };
            let (x_grad, p_grad) = super::backward(launcher, &layers, x_view, p_view, g_view, trace)?;
            let x_grad = x_grad.map(|grad| tensor(grad, device, x.shape())).transpose()?;
            Ok((x_grad, Some(tensor(p_grad, device, p.shape())?)))
        })
    }
}

/// See [`crate::ops::elementary::weighted_squares`]; `x` may be bf16, the loss is f32.
pub fn weighted_squares(x: &Tensor, truth: &Tensor, weights: &Tensor) -> Result<Tensor> {
    x.contiguous()?.apply_op3(&truth.contiguous()?, &weights.contiguous()?, WeightedSquares)
}

struct WeightedSquares;

impl CustomOp3 for WeightedSquares {
    fn name(&self) -> &'static str {
        "weighted-squares"
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        candle_core::bail!("a loss of the GPU got tensors of the host")
    }

    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        xl: &Layout,
        t: &CudaStorage,
        tl: &Layout,
        w: &CudaStorage,
        wl: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let gpu = Gpu { device: x.device().clone() };
        let (x, t, w) = (view(x, xl)?, view(t, tl)?, view(w, wl)?);
        let sum = losses::weighted_squares(&Launcher::new(&gpu, x.kind()), x, t, w)?;
        Ok((storage(sum, &gpu.device)?, ().into()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        t: &Tensor,
        w: &Tensor,
        _: &Tensor,
        g: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let grad = on_gpu([x, t, w, g], |launcher, device, [x_view, t, w, g]| {
            tensor(losses::weighted_squares_backward(launcher, x_view, t, w, g)?, device, x.shape())
        })?;
        Ok((Some(grad), None, None))
    }
}

/// See [`crate::ops::elementary::cross_entropy`]; `logits` may be bf16, the loss is f32. `known` labels are classes.
pub fn cross_entropy(logits: &Tensor, labels: &[u32], known: usize) -> Result<Tensor> {
    let labels = Tensor::from_slice(labels, labels.len(), logits.device())?;
    logits.contiguous()?.apply_op2(&labels, CrossEntropy { known })
}

struct CrossEntropy {
    known: usize,
}

impl CustomOp2 for CrossEntropy {
    fn name(&self) -> &'static str {
        "cross-entropy"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        candle_core::bail!("a loss of the GPU got tensors of the host")
    }

    fn cuda_fwd(&self, x: &CudaStorage, xl: &Layout, l: &CudaStorage, ll: &Layout) -> Result<(CudaStorage, Shape)> {
        let gpu = Gpu { device: x.device().clone() };
        let x = view(x, xl)?;
        let mean = losses::cross_entropy(&Launcher::new(&gpu, x.kind()), x, view(l, ll)?, self.known)?;
        Ok((storage(mean, &gpu.device)?, ().into()))
    }

    fn bwd(&self, x: &Tensor, labels: &Tensor, _: &Tensor, g: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let grad = on_gpu([x, labels, g], |launcher, device, [x_view, labels, g]| {
            tensor(losses::cross_entropy_backward(launcher, x_view, labels, self.known, g)?, device, x.shape())
        })?;
        Ok((Some(grad), None))
    }
}

/// See [`crate::ops::pick`]; without `fill` rows of zeros.
pub fn pick(x: &Tensor, mut index: Vec<u32>, fill: Option<&Tensor>) -> Result<Tensor> {
    let fill = match fill {
        Some(fill) => fill.contiguous()?,
        None => Tensor::zeros((1, x.dim(1)?), DType::F32, x.device())?,
    };
    let mut inverse = vec![u32::MAX; x.dim(0)?];
    for (at, from) in index.iter_mut().enumerate() {
        match inverse.get_mut(*from as usize) {
            None => *from = u32::MAX,
            Some(to) if *to == u32::MAX => *to = at as u32,
            Some(_) => candle_core::bail!("row {from} is picked twice"),
        }
    }
    x.contiguous()?.apply_op2(&fill, Pick { index, inverse })
}

struct Pick {
    index: Vec<u32>,
    /// For each row of the input the row of the output that it became.
    inverse: Vec<u32>,
}

impl CustomOp2 for Pick {
    fn name(&self) -> &'static str {
        "pick"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        candle_core::bail!("an operation of the GPU got tensors of the host")
    }

    fn cuda_fwd(&self, x: &CudaStorage, xl: &Layout, f: &CudaStorage, fl: &Layout) -> Result<(CudaStorage, Shape)> {
        let gpu = Gpu { device: x.device().clone() };
        let (x, fill) = (view(x, xl)?, view(f, fl)?);
        let launcher = Launcher::new(&gpu, x.kind());
        let index = launcher.upload(&self.index)?;
        let out = losses::pick(&launcher, x, index.view(), Some(fill), fill.len())?;
        Ok((storage(out, &gpu.device)?, (self.index.len(), fill.len()).into()))
    }

    fn bwd(&self, x: &Tensor, fill: &Tensor, _: &Tensor, g: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        on_gpu([g], |launcher, device, [g]| {
            let d = fill.elem_count();
            let (index, inverse) = (launcher.upload(&self.index)?, launcher.upload(&self.inverse)?);
            let x_grad = tensor(losses::pick(launcher, g, inverse.view(), None, d)?, device, x.shape())?;
            let fill_grad = tensor(losses::fill_sums(launcher, g, index.view(), d)?, device, fill.shape())?;
            Ok((Some(x_grad), Some(fill_grad)))
        })
    }
}

/// AdamW: `moment` becomes `keep` times itself plus `1 - keep` times the gradient, or its square.
pub fn adamw_moment(
    moment: (&CudaStorage, &Layout),
    g: (&CudaStorage, &Layout),
    keep: f64,
    square: bool,
) -> Result<()> {
    let gpu = Gpu { device: moment.0.device().clone() };
    let (moment, g) = (view(moment.0, moment.1)?, view(g.0, g.1)?);
    let n = moment.len();
    let numbers = [(keep as f32).into(), ((1.0 - keep) as f32).into(), square.into(), n.into()];
    let arguments = [&[moment.into(), g.into()], &numbers[..]].concat();
    Launcher::new(&gpu, Kind::F32).plain("adamw_moment", n, &arguments)
}

/// AdamW: `p` becomes `keep` times itself less `rate` times mean over (root of square * `root` + `eps`).
pub fn adamw_update([p, mean, square]: [(&CudaStorage, &Layout); 3], [keep, rate, root, eps]: [f64; 4]) -> Result<()> {
    let gpu = Gpu { device: p.0.device().clone() };
    let (p, mean, square) = (view(p.0, p.1)?, view(mean.0, mean.1)?, view(square.0, square.1)?);
    let numbers = [keep, rate, root, eps].map(|v| Arg::from(v as f32));
    let arguments = [&[p.into(), mean.into(), square.into()], &numbers[..], &[p.len().into()]].concat();
    Launcher::new(&gpu, Kind::F32).plain("adamw_update", p.len(), &arguments)
}

/// The first GPU for tests, if there is one.
#[cfg(test)]
pub fn bench() -> Option<Box<dyn super::tests::Bench>> {
    let device = open(0).ok()?;
    Some(Box::new(Gpu { device: device.as_cuda_device().ok()?.clone() }))
}

#[cfg(test)]
impl super::tests::Bench for Gpu {
    fn put(&self, kind: Kind, values: &[f32]) -> Memory {
        match kind {
            Kind::Bf16 => {
                let values: Vec<bf16> = values.iter().map(|v| bf16::from_f32(*v)).collect();
                self.own(kind, self.device.clone_htod(&values).unwrap())
            }
            _ => self.own(kind, self.device.clone_htod(values).unwrap()),
        }
    }

    fn read(&self, view: View) -> Vec<f32> {
        use candle_core::cuda_backend::cudarc::driver::result::memcpy_dtoh_sync;
        self.device.cuda_stream().synchronize().unwrap();
        // SAFETY: the view holds that many values of its kind, and all work on them is done.
        unsafe {
            if view.kind() == Kind::Bf16 {
                let mut values = vec![bf16::ZERO; view.len()];
                memcpy_dtoh_sync(&mut values, view.address()).unwrap();
                return values.iter().map(|v| v.to_f32()).collect();
            }
            let mut values = vec![0f32; view.len()];
            memcpy_dtoh_sync(&mut values, view.address()).unwrap();
            values
        }
    }
}
