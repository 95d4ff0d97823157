//! The subcommands about smaller forms of embeddings: `products` fits, measures and stores them, `encode` and `decode` use them.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use clap::{Args, Subcommand};
use nadir::encoder::Encoder as Engine;
use nadir::model::Model;
use nadir::model::products::Products;
use nadir_formats::{AlignedBytes, Matrix, Tiles, Values, read_values, write_atomic, write_npy};
use nadir_quantize::batch::{available_threads, embed_all};
use nadir_quantize::products::change::{Alteration, partners};
use nadir_quantize::products::measure::{Kept, Pairs, Rung, Sample, measure};
use nadir_quantize::products::{self, Fitted, Name};
use nadir_quantize::report::Labelled;

use crate::{band_names, parse, print, progress, read_tiles, writable};

#[derive(Subcommand)]
pub enum Command {
    /// Fit smaller forms of the embeddings to tiles, measure what each keeps, store them in the model's file
    ///
    /// The rungs: f32, int8 (a scale a number), binary (the signs about the mean), pca-N (the N numbers of most variance, int8), prefix-N (the first
    /// N numbers, int8, for models trained with Matryoshka prefixes). Measured on tiles that were not fitted: how many of the 10 nearest tiles
    /// are still found, what a 20-NN reads with labels, and how well "changed" is told from "the same tile seen again" (average precision;
    /// docs/products.md says what that is, and what not).
    #[command(
        after_help = "Examples:\n  quantize products --model yocto.nadir --tiles tiles.npy --labels labels.npy --split split.npy\n  \
        quantize products --model yocto.nadir --tiles train.npy --test test.npy --store yocto-products.nadir\n  \
        quantize encode --model yocto-products.nadir --product pca-32 --embeddings embeddings.npy --out codes.npy\n  \
        quantize decode --model yocto-products.nadir --product pca-32 --codes codes.npy --out again.npy"
    )]
    Products(ProductsArgs),
    /// Turn embeddings into codes of a product that the model's file holds
    Encode {
        /// A model with products
        #[arg(long, value_name = "X.nadir")]
        model: PathBuf,
        /// int8, binary, pca-N or prefix-N
        #[arg(long)]
        product: Name,
        /// Embeddings [tiles, dimension], as `quantize embed` writes them
        #[arg(long, value_name = "E.npy")]
        embeddings: PathBuf,
        /// Codes [tiles, bytes], u8
        #[arg(long, value_name = "C.npy")]
        out: PathBuf,
    },
    /// Turn codes of a product back into numbers: int8 and pca-N into embeddings, prefix-N into their first N, binary into -1 and 1
    Decode {
        /// The model that made the codes
        #[arg(long, value_name = "X.nadir")]
        model: PathBuf,
        /// What the codes are: int8, binary, pca-N or prefix-N
        #[arg(long)]
        product: Name,
        /// Codes [tiles, bytes], u8
        #[arg(long, value_name = "C.npy")]
        codes: PathBuf,
        /// Numbers [tiles, numbers], f32
        #[arg(long, value_name = "E.npy")]
        out: PathBuf,
    },
}

#[derive(Args)]
pub struct ProductsArgs {
    /// The model
    #[arg(long, value_name = "X.nadir")]
    model: PathBuf,
    /// Tiles [tiles, bands, height, width] to fit to: all, or with --split those of its training split
    #[arg(long, value_name = "T.npy")]
    tiles: PathBuf,
    /// Other tiles to measure on
    #[arg(long, value_name = "T.npy", conflicts_with = "split")]
    test: Option<PathBuf>,
    /// Bands of the tiles in their order, if not the model's: B4,B3,B2
    #[arg(long, value_delimiter = ',')]
    bands: Option<Vec<String>>,
    /// Class of each tile, an integer for each
    #[arg(long, value_name = "L.npy", requires = "split")]
    labels: Option<PathBuf>,
    /// For each tile 0 (fit), 2 (measure), 1 or -1 (not used)
    #[arg(long, value_name = "S.npy")]
    split: Option<PathBuf>,
    /// Numbers of principal components [default: those of 16,32,64 below the dimension]; the most of them are stored
    #[arg(long, value_name = "N,N", value_delimiter = ',')]
    pca: Option<Vec<usize>>,
    /// Lengths of prefixes [default: those of 32,64 below the dimension]
    #[arg(long, value_name = "N,N", value_delimiter = ',')]
    prefix: Option<Vec<usize>>,
    /// The most tiles that are altered for the measure of change, evenly spaced
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(2..))]
    pairs: u32,
    /// As JSON
    #[arg(long)]
    json: bool,
    /// Write the model with these products. A signature is left out: sign the file anew
    #[arg(long, value_name = "OUT.nadir")]
    store: Option<PathBuf>,
}

pub fn run(command: Command) -> Result<()> {
    match command {
        Command::Products(arguments) => products_of(&arguments),
        Command::Encode { model, product, embeddings, out } => {
            let bytes = AlignedBytes::read(&model)?;
            let products = stored(&bytes, &model)?;
            let matrix = Matrix::read(&embeddings)?;
            let code = product.product(products.dimension());
            let codes = products::encode(&products, code, &matrix).with_context(|| embeddings.display().to_string())?;
            let shape = [matrix.rows as u64, code.bytes(products.dimension()) as u64];
            Ok(write_npy(&out, &shape, &codes)?)
        }
        Command::Decode { model, product, codes, out } => {
            let bytes = AlignedBytes::read(&model)?;
            let products = stored(&bytes, &model)?;
            let (columns, values) = read_codes(&codes)?;
            let product = product.product(products.dimension());
            let numbers = products::decode(&products, product, &values, columns);
            Ok(numbers.with_context(|| codes.display().to_string())?.write(&out)?)
        }
    }
}

fn stored<'a>(bytes: &'a AlignedBytes, path: &Path) -> Result<Products<'a>> {
    let none = || format!("{}: holds no products: quantize products --store", path.display());
    parse(bytes, path)?.products().with_context(none)
}

/// Bytes of a row, and all rows.
fn read_codes(path: &Path) -> Result<(usize, Vec<u8>)> {
    let (shape, values) = read_values(path)?;
    let &[_, columns] = shape.as_slice() else {
        anyhow::bail!("{}: has shape {shape:?}, expected [tiles, bytes]", path.display());
    };
    let codes = match values {
        Values::Integers(values) => values.into_iter().map(u8::try_from).collect::<Result<_, _>>().ok(),
        Values::Floats(_) => None,
    };
    Ok((columns, codes.with_context(|| format!("{}: holds no bytes, expected u8", path.display()))?))
}

fn products_of(arguments: &ProductsArgs) -> Result<()> {
    let path = &arguments.model;
    let bytes = AlignedBytes::read(path)?;
    let model = parse(&bytes, path)?;
    let engine = Engine::new(&model);
    let read = |tiles: &Path| {
        let side = usize::from(model.architecture().tile_size);
        read_tiles(tiles, arguments.bands.as_deref(), &band_names(&model), side)
    };
    let measured = arguments.test.is_some() || arguments.split.is_some();
    ensure!(
        measured || arguments.store.is_some(),
        "--test or --split says on which tiles to measure, --store where to write: give one of them"
    );
    if let Some(out) = &arguments.store {
        writable(out)?;
    }
    let mut tiles = read(&arguments.tiles)?;
    let (mut fitted_rows, mut held_out) = ((0..tiles.len()).collect::<Vec<_>>(), Vec::new());
    let mut labelled = None;
    if let Some(split) = &arguments.split {
        // Without labels one class stands for all.
        let given = Labelled::read(arguments.labels.as_ref().unwrap_or(split), split, tiles.len())?;
        (fitted_rows, held_out) = (given.split.train.clone(), given.split.test.clone());
        labelled = arguments.labels.as_ref().map(|_| given);
    }
    if let Some(test) = &arguments.test {
        let others = read(test)?;
        held_out = (tiles.len()..tiles.len() + others.len()).collect();
        tiles = join(tiles, &others).with_context(|| format!("{}: differs in type", test.display()))?;
    }

    let embeddings = embed(&engine, &tiles, "embed")?;
    let dimension = embeddings.columns;
    let below = |defaults: &[usize]| defaults.iter().copied().filter(|&n| n < dimension).collect::<Vec<_>>();
    let pca = arguments.pca.clone().unwrap_or_else(|| below(&[16, 32, 64]));
    let prefixes = arguments.prefix.clone().unwrap_or_else(|| below(&[32, 64]));
    let bad = pca.iter().chain(&prefixes).find(|&&n| n == 0 || n > dimension);
    ensure!(
        bad.is_none(),
        "--pca, --prefix: {} numbers, limits are 1 to {dimension}",
        bad.copied().unwrap_or_default()
    );
    let components = pca.iter().copied().max().unwrap_or(0);
    let bits = products::fraction_bits(&model, &embeddings);
    let fitted = products::fit(&embeddings, &fitted_rows, components, bits)?;
    let section = fitted.to_bytes();
    let found = Products::read(&section, dimension).context("the products just fitted")?;

    let mut rows = Vec::new();
    if measured {
        let rungs: Vec<Rung> = [Rung::Float, Rung::Product(Name::Int8)]
            .into_iter()
            .chain(prefixes.iter().rev().map(|&n| Rung::Product(Name::Prefix(n))))
            .chain(pca.iter().rev().map(|&n| Rung::Product(Name::Pca(n))))
            .chain([Rung::Product(Name::Binary), Rung::Reranked])
            .collect();
        let pairs = pairs(&engine, &tiles, &held_out, &embeddings, labelled.as_ref(), arguments.pairs as usize)?;
        let sample = Sample {
            embeddings: &embeddings,
            fitted: &fitted_rows,
            held_out: &held_out,
            labels: labelled.as_ref(),
            pairs,
        };
        rows = measure(&found, &rungs, &sample)?;
    }
    if let Some(out) = &arguments.store {
        write_atomic(out, &products::store(&model, &fitted)?)?;
    }
    print(&summary(arguments, &model, &fitted, [fitted_rows.len(), held_out.len()], &rows))
}

/// What was fitted, measured and written.
fn summary(
    arguments: &ProductsArgs,
    model: &Model<'_>,
    fitted: &Fitted,
    [fitted_on, measured_on]: [usize; 2],
    rows: &[Kept],
) -> String {
    let section = fitted.to_bytes().len();
    if arguments.json {
        let value = serde_json::json!({
            "model": model.name(),
            "dimension": fitted.centre.len(),
            "fitted_tiles": fitted_on,
            "measured_tiles": measured_on,
            "section_bytes": section,
            "explained_variance": fitted.explained,
            "rungs": products::json(rows),
        });
        return format!("{value:#}\n");
    }
    let mut out = format!(
        "{} {}: {} numbers, fitted to {fitted_on} tiles, {section} bytes in the file\n",
        model.name(),
        model.precision().name(),
        fitted.centre.len()
    );
    if let Some(share) = fitted.explained.last() {
        out += &format!(
            "{} principal components explain {:.1} % of the variance\n",
            fitted.explained.len(),
            100.0 * share
        );
    }
    if !rows.is_empty() {
        out += &format!(
            "measured on {measured_on} tiles; change: average precision over pairs of tiles\n\n{}",
            products::text(rows)
        );
    }
    if let Some(path) = &arguments.store {
        let signed = nadir::guard::signed_key(model).is_some();
        let note = if signed { ", no longer signed: quantize sign" } else { "" };
        out += &format!("{}: written{note}\n", path.display());
    }
    out
}

/// Some of the held-out tiles, seen again under each alteration.
fn pairs(
    engine: &Engine<'_>,
    tiles: &Tiles,
    held_out: &[usize],
    embeddings: &Matrix,
    labels: Option<&Labelled>,
    most: usize,
) -> Result<Pairs> {
    let count = most.min(held_out.len());
    ensure!(count >= 2, "{} tiles to measure on, at least 2 are needed", held_out.len());
    let picked: Vec<usize> = (0..count).map(|i| held_out[i * held_out.len() / count]).collect();
    let seen = tiles.pick(&picked);
    let again = |alteration: Alteration| {
        let altered = alteration.of(&seen, engine.model().bands());
        Ok((alteration, embed(engine, &altered, alteration.name())?))
    };
    let classes: Option<Vec<usize>> = labels.map(|labels| picked.iter().map(|&row| labels.classes[row]).collect());
    let data = picked.iter().flat_map(|&row| embeddings.row(row)).copied().collect();
    Ok(Pairs {
        first: Matrix { rows: count, columns: embeddings.columns, data },
        again: Alteration::ALL.into_iter().map(again).collect::<Result<_>>()?,
        partners: partners(count, classes.as_deref()),
    })
}

fn embed(engine: &Engine<'_>, tiles: &Tiles, what: &'static str) -> Result<Matrix> {
    let bar = progress(tiles.len(), what, "tiles");
    let embeddings = embed_all(engine, tiles, available_threads(), || bar.inc(1))?;
    bar.finish_and_clear();
    Ok(embeddings)
}

/// The tiles of both arrays; none if their values are of different types.
fn join(first: Tiles, second: &Tiles) -> Option<Tiles> {
    use nadir_formats::Pixels::{F32, U8, U16};
    let [n, c, h, w] = first.shape;
    let pixels = match (first.pixels, &second.pixels) {
        (U8(a), U8(b)) => U8([&a[..], b].concat()),
        (U16(a), U16(b)) => U16([&a[..], b].concat()),
        (F32(a), F32(b)) => F32([&a[..], b].concat()),
        _ => return None,
    };
    Some(Tiles { shape: [n + second.len(), c, h, w], pixels })
}
