//! How ConvNeXt V2 encoders name their tensors, and what shape an encoder of a file has.

use std::collections::BTreeMap;

use anyhow::{Result, bail, ensure};
use nadir::model::{Architecture, STAGES, StemPadding};
use nadir_formats::expected_shapes;

use super::source::{Change, Entry, Source, Wanted};

/// Who named the tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Naming {
    /// MMEarth's sparse pretraining (MinkowskiEngine): `encoder.stages.0.0.dwconv.kernel`.
    Sparse,
    /// Meta's dense ConvNeXt V2 and MMEarth's dense encoder: `stages.0.0.dwconv.weight`. Nadir's own names, but that Meta counts its
    /// patchify stem as `downsample_layers.0` and the downsamplings from 1.
    Meta,
    /// timm: `stages.0.blocks.0.conv_dw.weight`.
    Timm,
}

impl Naming {
    /// Who named the tensors of `source`.
    pub(super) fn of(source: &Source) -> Result<Self> {
        let any = |part: &str| source.names().any(|n| n.contains(part));
        if any(".kernel") {
            Ok(Self::Sparse)
        } else if any(".conv_dw.") {
            Ok(Self::Timm)
        } else if any(".dwconv.") {
            Ok(Self::Meta)
        } else {
            let first: Vec<_> = source.names().take(4).collect();
            bail!(
                "holds no ConvNeXt V2 encoder by the names of MMEarth, Meta or timm; it begins with {}",
                first.join(", ")
            )
        }
    }

    /// The name of our tensor `name` in the file, of an encoder with a patchify stem or with MMEarth's.
    pub(crate) fn name(self, name: &str, patchify: bool) -> String {
        let (module, part) = name.rsplit_once('.').unwrap_or(("", name));
        let kind = Kind::of(module);
        let parts: Vec<_> = module.split('.').collect();
        match (self, kind, &parts[..]) {
            (Self::Meta, _, ["stem", at]) if patchify => format!("downsample_layers.0.{at}.{part}"),
            (Self::Meta, _, ["downsample_layers", index, at]) if patchify => {
                format!("downsample_layers.{}.{at}.{part}", after(index))
            }
            (Self::Meta, ..) => name.to_owned(),
            (Self::Sparse, Kind::Full | Kind::Depthwise, _) if part == "weight" => format!("encoder.{module}.kernel"),
            (Self::Sparse, Kind::Norm, _) => format!("encoder.{module}.ln.{part}"),
            (Self::Sparse, Kind::Linear, _) => format!("encoder.{module}.linear.{part}"),
            (Self::Sparse, ..) => format!("encoder.{name}"),
            (Self::Timm, _, ["downsample_layers", index, at]) => {
                format!("stages.{}.downsample.{at}.{part}", after(index))
            }
            (Self::Timm, _, ["stages", stage, block, module]) => {
                let (module, part) = match (*module, part) {
                    ("dwconv", _) => ("conv_dw", part),
                    ("pwconv1", _) => ("mlp.fc1", part),
                    ("pwconv2", _) => ("mlp.fc2", part),
                    ("grn", "gamma") => ("mlp.grn", "weight"),
                    ("grn", _) => ("mlp.grn", "bias"),
                    (module, _) => (module, part),
                };
                format!("stages.{stage}.blocks.{block}.{module}.{part}")
            }
            (Self::Timm, _, ["norm"]) => format!("head.norm.{part}"),
            (Self::Timm, ..) => name.to_owned(),
        }
    }

    /// Where the file says something of block `block` of stage `stage`.
    fn block_prefix(self, stage: usize) -> String {
        match self {
            Self::Sparse => format!("encoder.stages.{stage}."),
            Self::Meta => format!("stages.{stage}."),
            Self::Timm => format!("stages.{stage}.blocks."),
        }
    }
}

/// The stage after the downsampling `index`.
fn after(index: &str) -> usize {
    index.parse::<usize>().map_or(0, |i| i + 1)
}

/// What a module computes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Full,
    Depthwise,
    Linear,
    Response,
    Norm,
}

impl Kind {
    fn of(module: &str) -> Self {
        match module.split('.').collect::<Vec<_>>()[..] {
            ["initial_conv", "0"] | ["downsample_layers", _, "1"] => Self::Full,
            ["stem", "0"] | [.., "dwconv"] => Self::Depthwise,
            [.., "pwconv1" | "pwconv2"] => Self::Linear,
            [.., "grn"] => Self::Response,
            _ => Self::Norm,
        }
    }
}

/// The encoder's tensors in the file, all but the final norm; here their names begin with `encoder.`.
pub(super) fn wanted(naming: Naming, architecture: &Architecture, bands: usize) -> Vec<Wanted> {
    let of = |(name, to): (String, Vec<usize>)| {
        let module = name.rsplit_once('.').map_or("", |(module, _)| module);
        let (shape, change) = match (naming, Kind::of(module), &to[..]) {
            (Naming::Sparse, Kind::Full, [out, inputs, k, _]) => (vec![k * k, *inputs, *out], Change::Full),
            (Naming::Sparse, Kind::Depthwise, [out, _, k, _]) => (vec![k * k, *out], Change::Depthwise),
            _ => (to.clone(), Change::Same),
        };
        Wanted {
            from: naming.name(&name, architecture.is_patchify()),
            shape,
            name: format!("encoder.{name}"),
            to,
            change,
        }
    };
    expected_shapes(architecture, bands).into_iter().filter(|(name, _)| !name.starts_with("norm.")).map(of).collect()
}

/// The final norm, which a dense file may have.
pub(super) fn final_norm(naming: Naming, architecture: &Architecture) -> Vec<Wanted> {
    let to = vec![architecture.embedding_dimension()];
    let of = |part: &str| Wanted {
        from: naming.name(&format!("norm.{part}"), architecture.is_patchify()),
        shape: to.clone(),
        name: format!("encoder.norm.{part}"),
        to: to.clone(),
        change: Change::Same,
    };
    vec![of("weight"), of("bias")]
}

/// A size of ConvNeXt V2 with the parameters of its encoder with MMEarth's stem for 12 bands, the final LayerNorm left
/// out.
pub(super) struct Size {
    pub name: &'static str,
    pub depths: [u8; STAGES],
    pub dims: [u16; STAGES],
    /// Parameters with patches of 8 pixels.
    pub patch_8: u64,
    /// Parameters with patches of 16 pixels.
    pub patch_16: u64,
    /// Parameters of the ImageNet model, with its patchify stem and its classifier of 1000 classes, as timm counts them.
    pub imagenet: u64,
}

const fn size(name: &'static str, depths: [u8; STAGES], dims: [u16; STAGES], counts: [u64; 3]) -> Size {
    let [patch_8, patch_16, imagenet] = counts;
    Size { name, depths, dims, patch_8, patch_16, imagenet }
}

/// The sizes of ConvNeXt V2 (Woo et al., 2023); MMEarth released atto and tiny.
pub(super) const SIZES: [Size; 8] = [
    size("atto", [2, 2, 6, 2], [40, 80, 160, 320], [3_389_320, 3_389_440, 3_708_400]),
    size("femto", [2, 2, 6, 2], [48, 96, 192, 384], [4_850_544, 4_850_688, 5_233_240]),
    size("pico", [2, 2, 6, 2], [64, 128, 256, 512], [8_556_352, 8_556_544, 9_066_280]),
    size("nano", [2, 2, 8, 2], [80, 160, 320, 640], [14_986_640, 14_986_880, 15_623_800]),
    size("tiny", [3, 3, 9, 3], [96, 192, 384, 768], [27_871_104, 27_871_392, 28_635_496]),
    size("base", [3, 3, 27, 3], [128, 256, 512, 1024], [87_698_944, 87_699_328, 88_717_800]),
    size("large", [3, 3, 27, 3], [192, 384, 768, 1536], [196_429_056, 196_429_632, 197_956_840]),
    size("huge", [3, 3, 27, 3], [352, 704, 1408, 2816], [657_489_536, 657_490_592, 660_289_640]),
];

impl Size {
    /// The size with these channels.
    pub fn with_dims(dims: &[u16; STAGES]) -> Option<&'static Self> {
        SIZES.iter().find(|s| s.dims == *dims)
    }

    /// Tensors of the encoder without its final norm: 10 a block, 12 in three downsamplings, and in front 4 of a patchify stem or 8 of
    /// MMEarth's.
    pub fn tensors(&self, patchify: bool) -> usize {
        let front = if patchify { 4 } else { 8 };
        self.depths.iter().map(|d| usize::from(*d)).sum::<usize>() * 10 + 12 + front
    }

    /// Parameters of `architecture`, which is of this size, for `bands` bands; none for patches of which no figure is known.
    pub fn parameters(&self, architecture: &Architecture, bands: usize) -> Option<u64> {
        if architecture.is_patchify() {
            let [d, embedding] = [0, STAGES - 1].map(|stage| u64::from(self.dims[stage]));
            // Without classifier and final norm, and with other bands than three.
            let of_three = self.imagenet - 1000 * (embedding + 1) - 2 * embedding;
            return (architecture.patch_size == 32).then(|| of_three - 16 * d * 3 + 16 * d * bands as u64);
        }
        let twelve = match architecture.patch_size {
            8 => self.patch_8,
            16 => self.patch_16,
            _ => return None,
        };
        Some(twelve + 9 * u64::from(self.dims[0]) * bands as u64 - 9 * u64::from(self.dims[0]) * 12)
    }
}

/// The shape of the encoder in `source` and its number of bands; tile size, padding (of MMEarth's stem) and epsilons are still to be set.
///
/// Where tensors disagree, most of them are right, and [`super::source::collect`] names the others.
pub(super) fn shape(naming: Naming, source: &Source) -> Result<(Architecture, usize)> {
    let patchify = patchify_stem(naming, source)?;
    let mut a = Architecture {
        tile_size: 0,
        patch_size: 8,
        stem_padding: StemPadding::Same,
        depths: [1; STAGES],
        dims: [1; STAGES],
        grn_eps: 1e-6,
        ln_eps: 1e-6,
    };
    for stage in 0..STAGES {
        let prefix = naming.block_prefix(stage);
        let mut lengths = BTreeMap::<usize, usize>::new();
        let mut depth = 0;
        for entry in &source.entries {
            let Some((block, rest)) = entry.name.strip_prefix(&prefix).and_then(|n| n.split_once('.')) else {
                continue;
            };
            let Ok(block) = block.parse::<usize>() else { continue };
            depth = depth.max(block.saturating_add(1));
            if rest.starts_with("norm.") {
                *lengths.entry(entry.data.len()).or_default() += 1;
            }
        }
        let dim = lengths.iter().max_by_key(|(_, count)| **count).map_or(0, |(dim, _)| *dim);
        ensure!(depth > 0, "holds no block of stage {stage} ({prefix}0.*)");
        a.depths[stage] = u8::try_from(depth).unwrap_or(u8::MAX);
        a.dims[stage] = u16::try_from(dim).unwrap_or(u16::MAX);
    }
    if let Some(size) = Size::with_dims(&a.dims) {
        // Then a block too few is missing, and one too many unexpected.
        a.depths = size.depths;
    }
    if let Some(stem) = patchify {
        a.stem_padding = StemPadding::Patchify;
        // The kernel is 1, 2 or 4.
        a.patch_size = 8 * stem.shape[3] as u8;
        return Ok((a, stem.shape[1]));
    }
    let d0 = a.dim(0).max(1);
    let len = |name: &str| source.get(&naming.name(name, false)).map(|e| e.data.len());
    a.patch_size = match len("stem.0.weight").map(|n| n / d0) {
        Some(4) => 16,
        Some(16) => 32,
        _ => 8,
    };
    let bands = len("initial_conv.0.weight").map_or(12, |n| (n / (9 * d0)).max(1));
    Ok((a, bands))
}

/// The weight `[d, bands, k, k]` of a patchify stem, nothing if the stem is MMEarth's.
///
/// # Errors
/// If it is neither.
fn patchify_stem(naming: Naming, source: &Source) -> Result<Option<&Entry>> {
    if source.names().any(|n| n.contains("initial_conv.")) {
        return Ok(None);
    }
    let own = naming.name("stem.0.weight", true);
    let whole = |e: &&Entry| matches!(e.shape[..], [_, bands, height, k @ (1 | 2 | 4)] if bands > 0 && height == k);
    if let Some(stem) = source.get(&own).filter(whole).filter(|_| naming != Naming::Sparse) {
        return Ok(Some(stem));
    }
    let names = [&own, "stem.0.weight", "encoder.stem.0.kernel", "encoder.downsample_layers.0.0.kernel"];
    let found = names.iter().find_map(|n| source.get(n)).filter(|e| e.shape.len() > 2);
    let what = match found {
        Some(e) => format!("its stem is one convolution ({} {:?})", e.name, e.shape),
        None => format!("it has neither {} nor {own}", naming.name("initial_conv.0.weight", false)),
    };
    bail!(
        "{what}. Nadir's encoder begins as MMEarth's does (initial_conv.*: a 3x3 convolution, LayerNorm, GELU, and a depthwise stem), or \
         with a dense convolution whose kernel is its stride, 1, 2 or 4; no weights make these compute what another stem computes"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_those_of_mmearth() {
        for size in &SIZES {
            for (patch, bands) in [(8, 12), (16, 12), (8, 3), (16, 3)] {
                let a = Architecture {
                    depths: size.depths,
                    dims: size.dims,
                    ..Architecture::named("atto", 112, patch).unwrap()
                };
                let wanted = wanted(Naming::Sparse, &a, bands);
                let count: usize = wanted.iter().map(|w| w.shape.iter().product::<usize>()).sum();
                assert_eq!(wanted.len(), size.tensors(false), "{}", size.name);
                assert_eq!(Some(count as u64), size.parameters(&a, bands), "{}", size.name);
            }
        }
        let atto = &SIZES[0];
        assert_eq!((atto.tensors(false), SIZES[4].tensors(false)), (140, 200));
        let of = |patch| atto.parameters(&Architecture::named("atto", 112, patch).unwrap(), 3);
        assert_eq!((of(8), of(16), of(32)), (Some(3_386_080), Some(3_386_200), None));
    }

    #[test]
    fn counts_with_a_patchify_stem_are_those_of_imagenet_models() {
        for size in &SIZES {
            let named = Architecture::named(size.name, 224, 32).unwrap();
            let a = Architecture { stem_padding: StemPadding::Patchify, ..named };
            for naming in [Naming::Meta, Naming::Timm] {
                for bands in [3, 12] {
                    let wanted = wanted(naming, &a, bands);
                    let count: usize = wanted.iter().map(|w| w.shape.iter().product::<usize>()).sum();
                    assert_eq!(wanted.len(), size.tensors(true), "{}", size.name);
                    assert_eq!(size.parameters(&a, bands), Some(count as u64), "{}", size.name);
                }
            }
        }
    }

    #[test]
    fn names_and_shapes_are_those_of_the_files() {
        let a = Architecture::named("atto", 112, 16).unwrap();
        let find = |naming, name: &str| {
            let name = format!("encoder.{name}");
            let mut all = wanted(naming, &a, 12);
            all.extend(final_norm(naming, &a));
            let w = all.into_iter().find(|w| w.name == name).unwrap();
            (w.from, w.shape)
        };
        let expect = |naming, name: &str, from: &str, shape: &[usize]| {
            assert_eq!(find(naming, name), (from.to_owned(), shape.to_vec()));
        };
        let s = Naming::Sparse;
        expect(s, "initial_conv.0.weight", "encoder.initial_conv.0.kernel", &[9, 12, 40]);
        expect(s, "initial_conv.1.bias", "encoder.initial_conv.1.ln.bias", &[40]);
        expect(s, "stem.0.weight", "encoder.stem.0.kernel", &[4, 40]);
        expect(s, "downsample_layers.1.0.weight", "encoder.downsample_layers.1.0.ln.weight", &[80]);
        expect(s, "downsample_layers.1.1.weight", "encoder.downsample_layers.1.1.kernel", &[4, 80, 160]);
        expect(s, "stages.2.5.dwconv.weight", "encoder.stages.2.5.dwconv.kernel", &[49, 160]);
        expect(s, "stages.2.5.pwconv1.weight", "encoder.stages.2.5.pwconv1.linear.weight", &[640, 160]);
        let t = Naming::Timm;
        expect(t, "downsample_layers.1.1.weight", "stages.2.downsample.1.weight", &[160, 80, 2, 2]);
        expect(t, "stages.2.5.pwconv1.weight", "stages.2.blocks.5.mlp.fc1.weight", &[640, 160]);
        expect(t, "stages.2.5.grn.gamma", "stages.2.blocks.5.mlp.grn.weight", &[1, 1, 1, 640]);
        expect(t, "stages.2.5.norm.bias", "stages.2.blocks.5.norm.bias", &[160]);
        expect(t, "norm.weight", "head.norm.weight", &[320]);
        expect(Naming::Meta, "stages.2.5.grn.beta", "stages.2.5.grn.beta", &[1, 1, 1, 640]);
        expect(Naming::Meta, "downsample_layers.1.0.bias", "downsample_layers.1.0.bias", &[80]);
        let patchify = [
            ("stem.0.weight", "downsample_layers.0.0.weight", "stem.0.weight"),
            ("stem.1.bias", "downsample_layers.0.1.bias", "stem.1.bias"),
            ("downsample_layers.2.1.weight", "downsample_layers.3.1.weight", "stages.3.downsample.1.weight"),
            ("stages.0.1.dwconv.bias", "stages.0.1.dwconv.bias", "stages.0.blocks.1.conv_dw.bias"),
            ("norm.bias", "norm.bias", "head.norm.bias"),
        ];
        for (ours, meta, timm) in patchify {
            assert_eq!([Naming::Meta, Naming::Timm].map(|n| n.name(ours, true)), [meta, timm]);
        }
    }
}
