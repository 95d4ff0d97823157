//! Memory of a machine, and what kernels take.

use std::any::Any;
use std::marker::PhantomData;

use candle_core::Result;

/// How values lie in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// 4 bytes.
    F32,
    /// The upper 2 bytes of an f32.
    Bf16,
    /// 4 bytes.
    U32,
}

impl Kind {
    /// Bytes of a value.
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 | Self::U32 => 4,
            Self::Bf16 => 2,
        }
    }

    /// What the names of kernels for it end in.
    pub fn suffix(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::U32 => "u32",
        }
    }
}

/// Memory of a machine; given back when dropped, after all work that was started before.
pub struct Memory {
    address: u64,
    kind: Kind,
    len: usize,
    #[cfg_attr(not(feature = "cuda"), allow(dead_code))]
    owner: Box<dyn Any + Send + Sync>,
}

impl Memory {
    /// Memory of `len` values at `address`, which stays until `owner` is dropped.
    pub fn new(address: u64, kind: Kind, len: usize, owner: Box<dyn Any + Send + Sync>) -> Self {
        Self { address, kind, len, owner }
    }

    /// All of it.
    pub fn view(&self) -> View<'_> {
        View { address: self.address, kind: self.kind, len: self.len, memory: PhantomData }
    }

    /// How its values lie.
    #[cfg(feature = "cuda")]
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// What owns it.
    #[cfg(feature = "cuda")]
    pub fn into_owner(self) -> Box<dyn Any + Send + Sync> {
        self.owner
    }
}

/// Some values of a memory. Kernels read and write through it, each as it says.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    address: u64,
    kind: Kind,
    len: usize,
    memory: PhantomData<&'a ()>,
}

impl<'a> View<'a> {
    /// `len` values at `address`, which must stay as long as the view.
    #[cfg(feature = "cuda")]
    pub fn new(address: u64, kind: Kind, len: usize) -> Self {
        Self { address, kind, len, memory: PhantomData }
    }

    /// The address of the first value.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// How the values lie.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Number of values.
    pub fn len(&self) -> usize {
        self.len
    }

    /// `len` values from `start` on; fails if they are not all here.
    pub fn part(&self, start: usize, len: usize) -> Result<View<'a>> {
        if start.checked_add(len).is_none_or(|end| end > self.len) {
            candle_core::bail!("values {start} to {start} + {len} of a memory of {}", self.len);
        }
        Ok(Self { address: self.address + (start * self.kind.bytes()) as u64, len, ..*self })
    }

    /// Cuts it into consecutive parts of the given lengths.
    pub fn split<const N: usize>(&self, lengths: [usize; N]) -> Result<[View<'a>; N]> {
        let mut parts = [*self; N];
        let mut at = 0;
        for (part, len) in parts.iter_mut().zip(lengths) {
            *part = self.part(at, len)?;
            at += len;
        }
        Ok(parts)
    }
}

/// An argument of a kernel.
#[derive(Clone, Copy, Debug)]
pub enum Arg {
    /// A pointer.
    Address(u64),
    /// No pointer.
    Null,
    /// A C `int`.
    Int(usize),
    /// A C `size_t`.
    Size(usize),
    /// A C `float`.
    Float(f32),
}

impl Arg {
    /// An `int`'s value; fails if it does not fit.
    pub fn int(value: usize) -> Result<i32> {
        i32::try_from(value)
            .map_err(|_| candle_core::Error::msg(format!("{value} is too large for a kernel: split it")))
    }
}

impl From<View<'_>> for Arg {
    fn from(view: View) -> Self {
        Self::Address(view.address)
    }
}

impl From<&Memory> for Arg {
    fn from(memory: &Memory) -> Self {
        Self::Address(memory.address)
    }
}

impl From<usize> for Arg {
    fn from(value: usize) -> Self {
        Self::Int(value)
    }
}

impl From<bool> for Arg {
    fn from(value: bool) -> Self {
        Self::Int(value.into())
    }
}

impl From<f32> for Arg {
    fn from(value: f32) -> Self {
        Self::Float(value)
    }
}

/// A matrix in memory: element (i, j) lies at `i * columns + j`, or at `j * columns + i` if it is transposed.
#[derive(Clone, Copy, Debug)]
pub struct Matrix<'a> {
    /// Where it lies.
    pub view: View<'a>,
    /// Columns of what lies there, row by row.
    pub columns: usize,
    /// Whether the matrix is the transpose of what lies there.
    pub transposed: bool,
}

/// The row-major matrix of `columns` columns.
pub fn rows(view: View<'_>, columns: usize) -> Matrix<'_> {
    Matrix { view, columns, transposed: false }
}

/// The transpose of the row-major matrix of `columns` columns.
pub fn transposed(view: View<'_>, columns: usize) -> Matrix<'_> {
    Matrix { view, columns, transposed: true }
}
