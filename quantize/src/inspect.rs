//! What a model file holds, as text and as JSON.

use std::fmt::Write;

use nadir::encoder::Encoder;
use nadir::guard::{SelfTest, signed_key};
use nadir::model::{BLOCK_BYTES, KIND_COLUMNS, Model};
use nadir::plan::regions::places;
use serde_json::{Value, json};

/// Everything about the model, as JSON: header, sections, sizes.
pub fn json(model: &Model<'_>) -> Value {
    let arch = model.architecture();
    let bands = model.bands().len();
    let sections: Vec<Value> = (0..model.section_count())
        .filter_map(|index| {
            let entry = model.section_entry(index)?;
            let spec = model.expected(index);
            Some(json!({
                "index": index,
                "kind": entry.kind,
                "place": spec.map(|s| s.place.to_string()),
                "name": model.section_name(index).name(),
                "dtype": entry.dtype.name(),
                "elements": entry.elements,
                "bytes": entry.bytes(),
                "offset": entry.offset,
                "crc": format!("{:08x}", entry.crc),
            }))
        })
        .collect();
    json!({
        "header": model.header(),
        "format_major": model.version_major(),
        "raised": raised(model),
        "parity": model.has_parity(),
        "block_crcs": model.block_crcs().len(),
        "self_test": SelfTest::of(model).map(|test| json!({
            "tiles": test.tiles,
            "tile_type": test.kind.name(),
            "seed": test.seed,
            "sha256": hexadecimal(&test.hash),
        })),
        "checksum_columns": model.ancillary(KIND_COLUMNS).map(|entry| entry.elements),
        "products": model.products().map(|products| json!({
            "dimension": products.dimension(),
            "components": products.components(),
            "fraction_bits": products.fraction_bits(),
        })),
        "signed_with": signed_key(model).map(|key| hexadecimal(&key)),
        "file_bytes": model.bytes().len(),
        "file_crc": format!("{:08x}", model.file_crc()),
        "arena_bytes": Encoder::new(model).arena_bytes(),
        "parameters": arch.parameters(bands),
        "macs": arch.macs(bands),
        "grids": arch.grids(),
        "sections": sections,
    })
}

/// The same for people.
pub fn text(model: &Model<'_>) -> String {
    let (header, arch) = (model.header(), model.architecture());
    let bands = model.bands().len();
    let mut rows: Vec<(&str, String)> = vec![
        ("name", header.name.into()),
        ("precision", header.precision.name().into()),
        ("embedding", format!("{} values, space {}", header.embedding_dimension, header.embedding_space)),
        ("tile", format!("{bands} bands of {0}x{0} pixels", arch.tile_size)),
        (
            "stem",
            match arch.is_patchify() {
                true => format!("patchify, {0} x {0} pixels; patch {1}", arch.stem_stride(), arch.patch_size),
                false => format!("patch {}, padding {:?}", arch.patch_size, arch.stem_padding).to_lowercase(),
            },
        ),
        ("depths", list(&arch.depths)),
        ("dims", list(&arch.dims)),
        ("grids", list(&arch.grids())),
        ("epsilons", format!("GRN {:e}, LayerNorm {:e}", arch.grn_eps, arch.ln_eps)),
        ("parameters", thousands(arch.parameters(bands))),
        ("MACs a tile", thousands(arch.macs(bands))),
        (
            "raised",
            match raised(model) {
                layers if layers.is_empty() => none(),
                layers => format!("inputs of 14 bits: {}", layers.join(", ")),
            },
        ),
        ("version", header.model_version.to_string()),
        ("file", format!("{} bytes, CRC {:08x}", thousands(model.bytes().len() as u64), model.file_crc())),
        ("parity", if model.has_parity() { "one byte a 64-bit word".into() } else { none() }),
        (
            "block CRCs",
            match model.block_crcs().len() {
                0 => none(),
                n => format!("{n} of {BLOCK_BYTES} bytes"),
            },
        ),
        (
            "self-test",
            SelfTest::of(model).map_or_else(none, |test| {
                let (tiles, kind) = (test.tiles, test.kind.name());
                format!("{tiles} tiles of {kind}, seed {}, SHA-256 {}", test.seed, hexadecimal(&test.hash))
            }),
        ),
        (
            "columns",
            model.ancillary(KIND_COLUMNS).map_or_else(none, |entry| {
                format!("{} checksums of the pointwise layers", thousands(entry.elements as u64))
            }),
        ),
        (
            "products",
            model.products().map_or_else(none, |products| {
                format!("int8, binary, prefixes, {} principal components", products.components())
            }),
        ),
        (
            "signature",
            signed_key(model).map_or_else(none, |key| format!("with key {}, not verified", hexadecimal(&key))),
        ),
        ("arena", format!("{} bytes", thousands(Encoder::new(model).arena_bytes() as u64))),
    ];
    let p = &header.provenance;
    let provenance = [("made by", p.made_by), ("data", p.data), ("recipe", p.recipe), ("licence", p.licence)];
    rows.extend(provenance.into_iter().filter(|(_, text)| !text.is_empty()).map(|(name, text)| (name, text.into())));

    let mut out = String::new();
    for (name, value) in rows {
        // What a file says must not reach the terminal as control characters.
        let value: String = value.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        let _ = writeln!(out, "{name:<12} {value}");
    }
    let _ = writeln!(
        out,
        "\n{:<8} {:<24} {:>12} {:>12} {:>10} {:>10}",
        "band", "unit", "mean", "std", "no data", "saturated"
    );
    for band in model.bands() {
        let optional = |v: Option<f32>| v.map_or("-".into(), |v| v.to_string());
        let _ = writeln!(
            out,
            "{:<8} {:<24} {:>12} {:>12} {:>10} {:>10}",
            band.name.escape_default().to_string(),
            band.unit.escape_default().to_string(),
            band.mean,
            band.std,
            optional(band.no_data),
            optional(band.saturation)
        );
    }
    let _ = writeln!(
        out,
        "\n{:>7} {:<44} {:<5} {:>10} {:>10} {:>10}  crc",
        "section", "what", "type", "elements", "bytes", "offset"
    );
    for index in 0..model.section_count() {
        let Some(entry) = model.section_entry(index) else { continue };
        let what = model.section_name(index).to_string();
        let _ = writeln!(
            out,
            "{index:>7} {what:<44} {:<5} {:>10} {:>10} {:>10}  {:08x}",
            entry.dtype.name(),
            entry.elements,
            entry.bytes(),
            entry.offset,
            entry.crc
        );
    }
    out
}

/// The layers whose inputs have 14 bits: `block 3.0 pointwise 2`.
pub fn raised(model: &Model<'_>) -> Vec<String> {
    let raised = places(model.architecture()).filter(|&place| model.is_raised(place));
    raised.map(|place| format!("{place} pointwise 2")).collect()
}

fn none() -> String {
    "none".into()
}

/// Bytes in hexadecimal.
pub fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn list<T: ToString>(values: &[T]) -> String {
    values.iter().map(T::to_string).collect::<Vec<_>>().join(", ")
}

/// `1,234,567`.
pub fn thousands(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousands_are_grouped() {
        assert_eq!([0, 999, 1000, 1_234_567].map(thousands), ["0", "999", "1,000", "1,234,567"]);
    }
}
