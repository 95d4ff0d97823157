//! What two model files have in common and where they differ: header, sections, and whether their embeddings may be compared.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use half::f16;
use nadir::model::{Dtype, Model};
use serde_json::{Value, json};

use crate::inspect::thousands;

/// Where two files differ.
#[derive(Clone, Debug, PartialEq)]
pub struct Diff {
    /// Fields of the headers with different values: path, value of the first, value of the second; null where a file has none.
    pub fields: Vec<(String, Value, Value)>,
    /// Sections of either file, in their order.
    pub sections: Vec<SectionDiff>,
    /// Whether the networks have one shape, apart from their precision.
    pub same_architecture: bool,
    /// Whether both name one embedding space: only then their embeddings may be compared.
    pub same_space: bool,
    /// Whether both embed the same bands, normalised alike.
    pub same_bands: bool,
    /// Whether the files are the same to the byte.
    pub same_bytes: bool,
}

/// One section in both files.
#[derive(Clone, Debug, PartialEq)]
pub struct SectionDiff {
    /// `block 0.0 pointwise 1 weight`.
    pub name: String,
    /// Type and number of elements in each file, if it is there.
    pub shape: [Option<(&'static str, u64)>; 2],
    /// For sections of one type and length: the elements that differ.
    pub elements: Option<Elements>,
}

impl SectionDiff {
    /// Whether nothing differs.
    pub fn equal(&self) -> bool {
        self.elements.is_some_and(|elements| elements.differ == 0)
    }
}

/// Elements that differ between two sections.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Elements {
    /// How many.
    pub differ: u64,
    /// Largest difference, in the section's own units.
    pub largest: f64,
    /// Energy of the difference over energy of the first section, square root.
    pub relative: f64,
}

impl Diff {
    /// Compares two models.
    pub fn of(a: &Model<'_>, b: &Model<'_>) -> Self {
        let [of_a, of_b] = [a, b].map(fields);
        let paths: BTreeSet<&String> = of_a.keys().chain(of_b.keys()).collect();
        let value = |of: &BTreeMap<String, Value>, path: &String| of.get(path).cloned().unwrap_or(Value::Null);
        let fields: Vec<_> = paths
            .into_iter()
            .map(|path| (path.clone(), value(&of_a, path), value(&of_b, path)))
            .filter(|(_, a, b)| a != b)
            .collect();
        Self {
            same_architecture: a.architecture() == b.architecture(),
            same_space: a.embedding_space() == b.embedding_space(),
            same_bands: a.bands() == b.bands(),
            same_bytes: a.bytes() == b.bytes(),
            sections: sections(a, b),
            fields,
        }
    }

    /// What the differences mean, one line each.
    pub fn verdict(&self) -> [String; 3] {
        let yes = |same: bool, what: &str, no: &str| if same { format!("same {what}") } else { no.to_owned() };
        [
            yes(self.same_bytes, "file, to the byte", "different files"),
            yes(self.same_architecture, "architecture", "different architectures"),
            match (self.same_space, self.same_bands) {
                (true, true) => "same embedding space and bands: embeddings may be compared",
                (true, false) => "same embedding space, other bands or normalisation: embeddings may be compared",
                (false, _) => "different embedding spaces: embeddings must not be compared",
            }
            .into(),
        ]
    }
}

/// The header as paths and values: `architecture.dims.0`.
fn fields(model: &Model<'_>) -> BTreeMap<String, Value> {
    let mut fields = BTreeMap::new();
    let header = serde_json::to_value(model.header()).unwrap_or(Value::Null);
    flatten("", header, &mut fields);
    fields
}

fn flatten(path: &str, value: Value, fields: &mut BTreeMap<String, Value>) {
    let below = |name: &str| if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
    match value {
        Value::Object(map) => map.into_iter().for_each(|(name, value)| flatten(&below(&name), value, fields)),
        Value::Array(list) => {
            list.into_iter().enumerate().for_each(|(i, value)| flatten(&below(&i.to_string()), value, fields));
        }
        value => drop(fields.insert(path.to_owned(), value)),
    }
}

fn sections(a: &Model<'_>, b: &Model<'_>) -> Vec<SectionDiff> {
    let index = |model: &Model<'_>| -> Vec<(String, usize)> {
        let name = |i| model.expected(i).map_or(format!("section {i}"), |spec| spec.to_string());
        (0..model.section_count()).map(|i| (name(i), i)).collect()
    };
    let [of_a, of_b] = [a, b].map(index);
    let find = |of: &[(String, usize)], name: &str| of.iter().find(|(other, _)| other == name).map(|(_, i)| *i);
    let only_b = of_b.iter().filter(|(name, _)| find(&of_a, name).is_none());
    let names = of_a.iter().chain(only_b).map(|(name, _)| name);
    let shape = |model: &Model<'_>, i| model.section_entry(i).map(|entry| (entry.dtype.name(), entry.elements as u64));
    names
        .map(|name| {
            let [i, j] = [find(&of_a, name), find(&of_b, name)];
            let shape = [i.and_then(|i| shape(a, i)), j.and_then(|j| shape(b, j))];
            let pair = i.zip(j).filter(|_| shape[0] == shape[1]);
            let elements = pair.map(|(i, j)| elements(&values(a, i), &values(b, j)));
            SectionDiff { name: name.clone(), shape, elements }
        })
        .collect()
}

/// The elements of a section as real numbers.
fn values(model: &Model<'_>, index: usize) -> Vec<f64> {
    let Some(entry) = model.section_entry(index) else { return Vec::new() };
    match entry.dtype {
        Dtype::I8 => model.section::<i8>(index).iter().map(|&v| v.into()).collect(),
        Dtype::I16 => model.section::<i16>(index).iter().map(|&v| v.into()).collect(),
        Dtype::I32 => model.section::<i32>(index).iter().map(|&v| v.into()).collect(),
        Dtype::I64 => model.section::<i64>(index).iter().map(|&v| v as f64).collect(),
        Dtype::F32 => model.section::<f32>(index).iter().map(|&v| v.into()).collect(),
        Dtype::F16 => model.section::<u16>(index).iter().map(|&v| f16::from_bits(v).into()).collect(),
    }
}

fn elements(a: &[f64], b: &[f64]) -> Elements {
    let mut found = Elements::default();
    let (mut noise, mut signal) = (0.0, 0.0);
    for (a, b) in a.iter().zip(b) {
        found.differ += u64::from(a != b);
        found.largest = found.largest.max((a - b).abs());
        (noise, signal) = (noise + (a - b).powi(2), signal + a * a);
    }
    found.relative = if noise > 0.0 { (noise / signal.max(f64::MIN_POSITIVE)).sqrt() } else { 0.0 };
    found
}

/// For people: the fields and sections that differ, then the verdict.
pub fn text(diff: &Diff) -> String {
    let mut out = String::new();
    // What a file says must not reach the terminal as control characters.
    let shown = |value: &Value| match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.escape_debug().to_string(),
        other => other.to_string(),
    };
    if !diff.fields.is_empty() {
        let _ = writeln!(out, "{:<28} {:<32} second", "header", "first");
        for (path, a, b) in &diff.fields {
            let _ = writeln!(out, "{path:<28} {:<32} {}", shown(a), shown(b));
        }
        out.push('\n');
    }
    let equal = diff.sections.iter().filter(|section| section.equal()).count();
    let _ = writeln!(out, "{equal} of {} sections are equal", diff.sections.len());
    if equal < diff.sections.len() {
        let _ = writeln!(
            out,
            "\n{:<44} {:>12} {:>12} {:>12} {:>10}",
            "section", "elements", "differ", "by at most", "relative"
        );
    }
    for section in diff.sections.iter().filter(|section| !section.equal()) {
        match section.elements {
            Some(Elements { differ, largest, relative }) => {
                let count = section.shape[0].map_or(0, |(_, elements)| elements);
                let _ = writeln!(
                    out,
                    "{:<44} {:>12} {:>12} {largest:>12.6} {relative:>10.2e}",
                    section.name,
                    thousands(count),
                    thousands(differ)
                );
            }
            None => {
                let [a, b] = section.shape.map(|shape| {
                    shape.map_or("none".into(), |(dtype, elements)| format!("{} {dtype}", thousands(elements)))
                });
                let _ = writeln!(out, "{:<44} {a} against {b}", section.name);
            }
        }
    }
    let _ = writeln!(out, "\n{}", diff.verdict().join("\n"));
    out
}

/// The same as JSON.
pub fn json(diff: &Diff) -> Value {
    let field = |(path, a, b): &(String, Value, Value)| json!({"field": path, "first": a, "second": b});
    let shape =
        |shape: Option<(&str, u64)>| shape.map(|(dtype, elements)| json!({"dtype": dtype, "elements": elements}));
    let section = |section: &SectionDiff| {
        json!({
            "name": section.name,
            "equal": section.equal(),
            "first": shape(section.shape[0]),
            "second": shape(section.shape[1]),
            "differ": section.elements.map(|e| e.differ),
            "largest": section.elements.map(|e| e.largest),
            "relative": section.elements.map(|e| e.relative),
        })
    };
    json!({
        "same_file": diff.same_bytes,
        "same_architecture": diff.same_architecture,
        "same_embedding_space": diff.same_space,
        "same_bands": diff.same_bands,
        "header": diff.fields.iter().map(field).collect::<Vec<_>>(),
        "sections": diff.sections.iter().map(section).collect::<Vec<_>>(),
    })
}
