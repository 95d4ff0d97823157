//! A report for the terminal and as JSON.

use std::fmt::Write;

use serde_json::{Value, json};

use super::ends::{Accuracy, OVERLAP, VOTES};
use super::layers::{Layer, MapError};
use super::{Report, html};
use crate::inspect::thousands;

/// The table for people.
pub fn text(report: &Report<'_>) -> String {
    let model = report.model;
    let mut out = format!("{} {}", model.name(), model.precision().name());
    if let Some(per_mac) = &report.per_mac {
        let _ = write!(out, ", {:.3} instructions a multiply-add ({})", per_mac.instructions, per_mac.source);
    }
    let _ = writeln!(
        out,
        "\n\n{:<30} {:>6} {:>9} {:>9} {:>21} {:>11} {:>12} {:>13}",
        "layer", "dB", "cosine", "saturated", "range", "bytes", "MACs", "instructions"
    );
    let mut row = |name: &str, map: Option<MapError>, bytes: u64, macs: u64| {
        let _ = write!(out, "{name:<30} ");
        let _ = match map {
            Some(MapError { decibels, cosine, saturated, range: [low, high] }) => write!(
                out,
                "{decibels:>6.1} {cosine:>9.6} {:>9} {:>21}",
                html::share(saturated),
                format!("{low:.3} to {high:.3}")
            ),
            None => write!(out, "{:>6} {:>9} {:>9} {:>21}", "-", "-", "-", "-"),
        };
        let instructions = report.instructions(macs).map_or("-".into(), thousands);
        let _ = writeln!(out, " {:>11} {:>12} {instructions:>13}", thousands(bytes), thousands(macs));
    };
    for (place, layers) in report.places() {
        // A place is as good as what leaves it.
        row(place, layers.last().and_then(|layer| layer.map), bytes(layers), macs(layers));
        layers.iter().for_each(|layer| row(&format!("  {}", layer.name), layer.map, layer.bytes, layer.macs));
    }
    row("all", None, bytes(&report.layers), macs(&report.layers));
    let (ends, a) = (&report.ends, &report.ends.agreement);
    if report.layers.iter().any(|layer| layer.map.is_some()) {
        let _ = writeln!(
            out,
            "\nlayers against float64 on {} tiles: errors of the layers before are in those after",
            report.layer_tiles
        );
    }
    let _ = writeln!(
        out,
        "\nembeddings against the float encoder's, {} tiles\n\
         cosine             mean {:.6}  1 % {:.6}  min {:.6} (tile {})\n\
         signal to noise    {:.1} dB",
        a.cosines.len(),
        a.mean(),
        a.percentile(1.0),
        a.percentile(0.0),
        a.worst(),
        a.signal_to_noise_db
    );
    if let Some(overlap) = ends.overlap {
        let _ = writeln!(out, "neighbour overlap  {overlap:.4} of the {OVERLAP} nearest");
    }
    if let Some([float, quantized]) = ends.accuracy {
        let _ =
            writeln!(out, "\n{:<22} {:>8} {:>10} {:>10}", "accuracy, test rows", "float", "quantized", "difference");
        for (name, value) in PROBES {
            let [a, b] = [value(&float), value(&quantized)];
            let _ = writeln!(
                out,
                "{:<22} {:>6.2} % {:>8.2} % {:>+10.2}",
                name.replace("K", &VOTES.to_string()),
                100.0 * a,
                100.0 * b,
                100.0 * (b - a)
            );
        }
    }
    out
}

/// Name of a probe and how to get its accuracy; K stands for the neighbours that vote.
pub(super) const PROBES: [(&str, fn(&Accuracy) -> f64); 2] =
    [("K-NN", |a| a.neighbours), ("logistic regression", |a| a.logistic)];

pub(super) fn bytes(layers: &[Layer]) -> u64 {
    layers.iter().map(|layer| layer.bytes).sum()
}

pub(super) fn macs(layers: &[Layer]) -> u64 {
    layers.iter().map(|layer| layer.macs).sum()
}

/// The same as JSON; numbers that are not finite or not known are null.
pub fn json(report: &Report<'_>) -> Value {
    let layer = |layer: &Layer| {
        json!({
            "name": layer.name,
            "bytes": layer.bytes,
            "macs": layer.macs,
            "instructions": report.instructions(layer.macs),
            "signal_to_noise_db": layer.map.map(|map| map.decibels),
            "cosine": layer.map.map(|map| map.cosine),
            "saturated": layer.map.map(|map| map.saturated),
            "range": layer.map.map(|map| map.range),
        })
    };
    let place = |(name, layers): (&str, &[Layer])| {
        json!({
            "place": name,
            "bytes": bytes(layers),
            "macs": macs(layers),
            "instructions": report.instructions(macs(layers)),
            "signal_to_noise_db": layers.last().and_then(|layer| layer.map).map(|map| map.decibels),
            "layers": layers.iter().map(layer).collect::<Vec<_>>(),
        })
    };
    let accuracy = |a: Accuracy| json!({"knn": a.neighbours, "logistic": a.logistic});
    json!({
        "model": report.model.name(),
        "precision": report.model.precision().name(),
        "file_bytes": report.model.bytes().len(),
        "layer_tiles": report.layer_tiles,
        "instructions_per_mac": report.per_mac.as_ref().map(|per_mac| per_mac.instructions),
        "instructions_source": report.per_mac.as_ref().map(|per_mac| &per_mac.source),
        "places": report.places().map(place).collect::<Vec<_>>(),
        "embeddings": report.ends.agreement.json(),
        "neighbour_overlap": report.ends.overlap,
        "neighbours": OVERLAP,
        "accuracy": report.ends.accuracy.map(|[float, quantized]| {
            json!({"k": VOTES, "float": accuracy(float), "quantized": accuracy(quantized)})
        }),
    })
}
