//! The tensors of a file from elsewhere, before anything is known about them.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use nadir_formats::Tensor as Array;
use safetensors::tensor::{Dtype, SafeTensors};

/// A tensor by name. Cloning shares the values.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub name: String,
    pub shape: Vec<usize>,
    /// Row-major.
    pub data: Arc<[f32]>,
}

/// All tensors of a file, in its order.
#[derive(Clone, Debug)]
pub(super) struct Source {
    pub entries: Vec<Entry>,
}

impl Source {
    /// Reads a PyTorch or safetensors file, told apart by how it begins.
    pub fn read(path: &Path) -> Result<Self> {
        let shown = || path.display().to_string();
        let mut start = [0u8; 9];
        let length = std::fs::File::open(path)
            .and_then(|file| std::io::Read::read(&mut std::io::Read::take(file, 9), &mut start))
            .with_context(shown)?;
        let source = match &start[..length] {
            [b'P', b'K', ..] => super::pth::read(path),
            [.., b'{'] if length == 9 => safetensors(path),
            _ => Err(anyhow::anyhow!("is neither a PyTorch file (a zip archive, torch 1.6 or later) nor safetensors")),
        };
        source.and_then(|s| s.checked()).with_context(shown)
    }

    /// Fails if a name stands twice or a value is not finite; names all tensors that have such values.
    pub fn checked(self) -> Result<Self> {
        let mut names = std::collections::BTreeSet::new();
        for entry in &self.entries {
            ensure!(names.insert(&entry.name), "tensor {} stands there twice", entry.name);
        }
        let bad = |e: &&Entry| e.data.iter().any(|v| !v.is_finite());
        let bad: Vec<_> = self.entries.iter().filter(bad).map(|e| e.name.as_str()).collect();
        ensure!(bad.is_empty(), "values that are not finite in {}", bad.join(", "));
        ensure!(!self.entries.is_empty(), "holds no tensor");
        Ok(self)
    }

    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.iter().map(|e| e.name.as_str())
    }

    pub fn get(&self, name: &str) -> Option<&Entry> {
        self.entries.iter().find(|e| e.name == name)
    }
}

fn safetensors(path: &Path) -> Result<Source> {
    let bytes = std::fs::read(path)?;
    let file = SafeTensors::deserialize(&bytes).context("is not a safetensors file")?;
    let mut entries = Vec::new();
    for (name, view) in file.iter() {
        let convert = |width, f: fn(&[u8]) -> f32| view.data().chunks_exact(width).map(f).collect();
        let data = match view.dtype() {
            Dtype::F32 => convert(4, |b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])),
            Dtype::F16 => convert(2, |b| half::f16::from_le_bytes([b[0], b[1]]).to_f32()),
            Dtype::BF16 => convert(2, |b| half::bf16::from_le_bytes([b[0], b[1]]).to_f32()),
            other => bail!("tensor {name} has type {other:?}, expected F32, F16 or BF16"),
        };
        entries.push(Entry { name: name.to_owned(), shape: view.shape().to_vec(), data });
    }
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(Source { entries })
}

/// How a tensor of the file becomes one of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// As it is, apart from axes of length 1.
    Same,
    /// A kernel of MinkowskiEngine, `[k * k, in, out]`, to `[out, in, k, k]`. Its first axis runs along the rows fastest:
    /// `weight[o, i, row, column] = kernel[column * k + row, i, o]`.
    Full,
    /// A depthwise kernel of MinkowskiEngine, `[k * k, channels]`, to `[channels, 1, k, k]`, in the same order.
    Depthwise,
}

/// A tensor that a file should hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    /// Its name in the file.
    pub from: String,
    /// Its shape in the file.
    pub shape: Vec<usize>,
    /// Its name here.
    pub name: String,
    /// Its shape here.
    pub to: Vec<usize>,
    pub change: Change,
}

/// Collects the wanted tensors of `source`.
///
/// # Errors
/// One message with the names of all that are missing, misshapen, or neither wanted nor passed over by `ignored`.
pub(super) fn collect(
    source: &Source,
    wanted: &[Wanted],
    ignored: impl Fn(&str) -> bool,
) -> Result<BTreeMap<String, Array>> {
    let by_name: BTreeMap<_, _> = source.entries.iter().map(|e| (e.name.as_str(), e)).collect();
    let expected: std::collections::BTreeSet<_> = wanted.iter().map(|w| w.from.as_str()).collect();
    let (mut missing, mut misshapen, mut tensors) = (Vec::new(), Vec::new(), BTreeMap::new());
    for w in wanted {
        match by_name.get(w.from.as_str()) {
            None => missing.push(w.from.clone()),
            Some(e) if !same_axes(&e.shape, &w.shape) => {
                misshapen.push(format!("{} {:?} instead of {:?}", w.from, e.shape, w.shape));
            }
            Some(e) => {
                tensors.insert(w.name.clone(), Array { shape: w.to.clone(), data: changed(&e.data, w) });
            }
        }
    }
    let unexpected: Vec<_> =
        source.names().filter(|n| !expected.contains(n) && !ignored(n)).map(str::to_owned).collect();
    let lists = [("missing", missing), ("of another shape", misshapen), ("unexpected", unexpected)];
    let lists: Vec<_> = lists
        .iter()
        .filter(|(_, names)| !names.is_empty())
        .map(|(what, names)| format!("{} tensors are {what}: {}", names.len(), names.join(", ")))
        .collect();
    ensure!(lists.is_empty(), "{}", lists.join("; "));
    Ok(tensors)
}

/// Whether two shapes are the same but for axes of length 1.
fn same_axes(a: &[usize], b: &[usize]) -> bool {
    let long = |shape: &[usize]| shape.iter().copied().filter(|d| *d != 1).collect::<Vec<_>>();
    long(a) == long(b)
}

fn changed(data: &[f32], wanted: &Wanted) -> Vec<f32> {
    if wanted.change == Change::Same {
        return data.to_vec();
    }
    // In and out are 1 and the channels for a depthwise kernel.
    let (k, out) = (wanted.to[2], wanted.to[0]);
    let inputs = if wanted.change == Change::Full { wanted.to[1] } else { 1 };
    let mut weight = Vec::with_capacity(data.len());
    for o in 0..out {
        for i in 0..inputs {
            for row in 0..k {
                weight.extend((0..k).map(|column| data[((column * k + row) * inputs + i) * out + o]));
            }
        }
    }
    weight
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_are_put_in_order() {
        // The value says where it belongs: 1000 o + 100 i + 10 row + column.
        let (k, inputs, out) = (3, 2, 4);
        let mut kernel = vec![0.0; k * k * inputs * out];
        for o in 0..out {
            for i in 0..inputs {
                for row in 0..k {
                    for column in 0..k {
                        kernel[((row + k * column) * inputs + i) * out + o] =
                            (1000 * o + 100 * i + 10 * row + column) as f32;
                    }
                }
            }
        }
        let wanted = Wanted {
            from: String::new(),
            shape: vec![],
            name: String::new(),
            to: vec![out, inputs, k, k],
            change: Change::Full,
        };
        let mut sorted = kernel.clone();
        sorted.sort_by(f32::total_cmp);
        assert_eq!(changed(&kernel, &wanted), sorted);
    }
}
