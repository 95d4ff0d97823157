//! A machine on the host that runs the kernels' sources, compiled as C++ (`emulate.h`): what a GPU would compute, in the
//! order of a GPU's blocks and barriers. For tests.

#![allow(unsafe_code)]

use std::ffi::{CString, c_char, c_int, c_void};
use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, OnceLock};

use candle_core::Result;
use half::bf16;
use libloading::Library;

use super::tests::Bench;
use super::{Arg, BLOCK, Kind, Machine, Matrix, Memory, View};

/// Values before and after every memory, which no kernel may touch.
const GUARD: usize = 64;

type Emulate = unsafe extern "C" fn(*const c_char, c_int, c_int, c_int, c_int, c_int, *mut *mut c_void) -> c_int;

/// The compiled kernels, or why there are none. One launch at a time: the emulation has one state.
static KERNELS: OnceLock<std::result::Result<Mutex<Library>, String>> = OnceLock::new();

fn compile() -> std::result::Result<Mutex<Library>, String> {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/ops/cuda");
    if !sources.exists() {
        return Err("the sources are on another machine".into());
    }
    let dir = tempfile::tempdir().map_err(|e| e.to_string())?;
    let library = dir.path().join("kernels.so");
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".into());
    let output = Command::new(&compiler)
        .args(["-std=c++17", "-O2", "-ffp-contract=fast", "-fPIC", "-shared", "-w", "-x", "c++", "-I"])
        .arg(sources.join("kernels"))
        .arg(sources.join("emulate.h"))
        .arg("-o")
        .arg(&library)
        .output()
        .map_err(|e| format!("{compiler}: {e}"))?;
    // A compiler that is there must be able to compile them.
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    // SAFETY: the library was just made from the sources here; its constructors only fill a table.
    let library = unsafe { Library::new(library) }.map_err(|e| e.to_string())?;
    Ok(Mutex::new(library))
}

/// The machine. With `reversed`, the threads of a block start in reverse order.
pub struct Emulator {
    reversed: bool,
}

impl Emulator {
    /// Nothing, said loudly, where there is no C++ compiler.
    pub fn new(reversed: bool) -> Option<Self> {
        match KERNELS.get_or_init(compile) {
            Ok(_) => Some(Self { reversed }),
            Err(reason) => {
                eprintln!("SKIPPED: the CUDA kernels are not tested: {reason}");
                None
            }
        }
    }
}

impl Bench for Emulator {
    fn put(&self, kind: Kind, values: &[f32]) -> Memory {
        match kind {
            Kind::F32 => allocate(kind, values, f32::NAN),
            Kind::Bf16 => allocate(kind, &values.iter().map(|v| bf16::from_f32(*v)).collect::<Vec<_>>(), bf16::NAN),
            Kind::U32 => panic!("for f32 and bf16"),
        }
    }

    fn read(&self, view: View) -> Vec<f32> {
        read(view)
    }
}

/// What owns a memory; checks its guards when it goes.
struct Guarded<T: Copy + PartialEq> {
    values: Vec<T>,
    bytes: fn(&T) -> Vec<u8>,
}

impl<T: Copy + PartialEq> Drop for Guarded<T> {
    fn drop(&mut self) {
        let n = self.values.len();
        let intact = (self.values[..GUARD].iter().chain(&self.values[n - GUARD..]))
            .all(|v| (self.bytes)(v) == (self.bytes)(&self.values[0]));
        if !intact && !std::thread::panicking() {
            panic!("a kernel wrote beside its memory");
        }
    }
}

trait Plain: Copy + PartialEq + Send + Sync + 'static {
    fn bytes(&self) -> Vec<u8>;
}
impl Plain for f32 {
    fn bytes(&self) -> Vec<u8> {
        self.to_le_bytes().to_vec()
    }
}
impl Plain for bf16 {
    fn bytes(&self) -> Vec<u8> {
        self.to_le_bytes().to_vec()
    }
}
impl Plain for u32 {
    fn bytes(&self) -> Vec<u8> {
        self.to_le_bytes().to_vec()
    }
}

fn allocate<T: Plain>(kind: Kind, values: &[T], guard: T) -> Memory {
    let all = [vec![guard; GUARD], values.to_vec(), vec![guard; GUARD]].concat();
    let owner = Box::new(Guarded { values: all, bytes: T::bytes });
    Memory::new(owner.values[GUARD..].as_ptr() as u64, kind, values.len(), owner)
}

/// The f32 or bf16 values of a view as f32.
fn read(view: View) -> Vec<f32> {
    // SAFETY: views of this machine are of memory that lives as long as they and holds `len` values of their kind; no
    // kernel runs now.
    unsafe {
        match view.kind() {
            Kind::F32 => std::slice::from_raw_parts(view.address() as *const f32, view.len()).to_vec(),
            Kind::Bf16 => {
                let values = std::slice::from_raw_parts(view.address() as *const bf16, view.len());
                values.iter().map(|v| v.to_f32()).collect()
            }
            Kind::U32 => panic!("for f32 and bf16"),
        }
    }
}

fn write(view: View, values: &[f32]) {
    assert_eq!(view.len(), values.len());
    // SAFETY: as in `read`; nothing else refers to the memory's values, which are reached through its address alone.
    unsafe {
        match view.kind() {
            Kind::F32 => std::slice::from_raw_parts_mut(view.address() as *mut f32, view.len()).copy_from_slice(values),
            Kind::Bf16 => std::slice::from_raw_parts_mut(view.address() as *mut bf16, view.len())
                .iter_mut()
                .zip(values)
                .for_each(|(to, v)| *to = bf16::from_f32(*v)),
            Kind::U32 => panic!("for f32 and bf16"),
        }
    }
}

impl Machine for Emulator {
    /// The memory holds not-a-number, so that a value that no kernel wrote is seen.
    fn alloc(&self, kind: Kind, len: usize) -> Result<Memory> {
        Ok(self.put(kind, &vec![f32::NAN; len]))
    }

    fn upload(&self, values: &[u32]) -> Result<Memory> {
        Ok(allocate(Kind::U32, values, 0x7fff_fff0))
    }

    fn launch(&self, kernel: &str, [x, y]: [usize; 2], arguments: &[Arg]) -> Result<()> {
        let mut values: Vec<[u8; 8]> = Vec::with_capacity(arguments.len());
        for argument in arguments {
            let mut bytes = [0; 8];
            match argument {
                Arg::Address(address) => bytes = address.to_le_bytes(),
                Arg::Null => {}
                Arg::Int(value) => bytes[..4].copy_from_slice(&Arg::int(*value)?.to_le_bytes()),
                Arg::Size(value) => bytes = (*value as u64).to_le_bytes(),
                Arg::Float(value) => bytes[..4].copy_from_slice(&value.to_le_bytes()),
            }
            values.push(bytes);
        }
        let mut pointers: Vec<*mut c_void> = values.iter_mut().map(|v| v.as_mut_ptr().cast()).collect();
        let name = CString::new(kernel).map_err(candle_core::Error::wrap)?;
        let Some(Ok(kernels)) = KERNELS.get() else { candle_core::bail!("no kernels") };
        let library = kernels.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let [across, down] = BLOCK.map(|n| n as c_int);
        // SAFETY: `emulate` has this signature; the arguments are what the kernel's own signature says, as on a GPU,
        // and each pointer points to 8 bytes.
        let code = unsafe {
            let emulate = library.get::<Emulate>(b"emulate").map_err(candle_core::Error::wrap)?;
            let grid = [x as c_int, y as c_int];
            emulate(name.as_ptr(), grid[0], grid[1], across, down, self.reversed.into(), pointers.as_mut_ptr())
        };
        match code {
            0 => Ok(()),
            1 => candle_core::bail!("no kernel is named {kernel}"),
            _ => candle_core::bail!("{kernel}: the threads of a block wait for each other for ever"),
        }
    }

    fn multiply(&self, out: View, [m, n, k]: [usize; 3], left: Matrix, right: Matrix, add: bool) -> Result<()> {
        let at = |matrix: &Matrix, i: usize, j: usize| match matrix.transposed {
            false => i * matrix.columns + j,
            true => j * matrix.columns + i,
        };
        let (a, b, mut c) = (read(left.view), read(right.view), read(out));
        for i in 0..m {
            for j in 0..n {
                let sum: f64 = (0..k).map(|x| f64::from(a[at(&left, i, x)]) * f64::from(b[at(&right, x, j)])).sum();
                c[i * n + j] = sum as f32 + if add { c[i * n + j] } else { 0.0 };
            }
        }
        write(out, &c);
        Ok(())
    }
}
