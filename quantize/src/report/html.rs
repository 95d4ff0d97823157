//! A report as one HTML page that carries everything within, for light and dark screens.

mod plots;

use std::fmt::Write;

use super::Report;
use super::ends::{OVERLAP, VOTES};
use super::text::{PROBES, bytes, macs};
use crate::inspect::thousands;

const STYLE: &str = include_str!("page.css");

/// The page.
pub fn page(report: &Report<'_>) -> String {
    let model = report.model;
    let (name, precision) = (escape(model.name()), model.precision().name());
    let mut html = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
         <title>{name} {precision}: what quantization lost</title><style>{STYLE}</style></head><body><main>\
         <h1>{name} in {precision}: what quantization lost</h1>\
         <p>Embeddings of {} tiles beside those of the float encoder. {} bytes, {} multiply-adds a tile.</p>",
        thousands(report.ends.agreement.cosines.len() as u64),
        thousands(model.bytes().len() as u64),
        thousands(macs(&report.layers)),
    );
    headline(&mut html, report);
    if report.layers.iter().any(|layer| layer.map.is_some()) {
        let _ = write!(
            html,
            "<h2>Signal to noise, layer by layer</h2><p>Energy of the float map over energy of the difference, on {} tiles. Errors of \
             the layers before are in those after. Orange: a layer that cuts off more than one value in 10,000.</p>\
             <div class=\"card scroll\">{}</div>",
            report.layer_tiles,
            plots::signal_to_noise(report)
        );
    }
    let _ = write!(
        html,
        "<h2>Cosines</h2><p>How many tiles have which cosine between the quantized and the float embedding. Right is exact; each step to \
         the left is ten times as far from it.</p><div class=\"card scroll\">{}</div>\
         <h2>What each place costs</h2><p>Bytes of the file (dark) and multiply-adds (light), as shares of the whole.</p>\
         <div class=\"card scroll\">{}</div>",
        plots::cosines(&report.ends.agreement.cosines),
        plots::costs(report)
    );
    table(&mut html, report);
    html.push_str("</main></body></html>\n");
    html
}

fn card(html: &mut String, label: &str, value: &str, detail: &str) {
    let _ = write!(
        html,
        "<div class=\"card\"><span class=\"label\">{label}</span><b>{value}</b><span class=\"soft\">{detail}</span></div>"
    );
}

fn headline(html: &mut String, report: &Report<'_>) {
    let (ends, a) = (&report.ends, &report.ends.agreement);
    html.push_str("<div class=\"cards\">");
    let least = format!("1 % {:.6}, least {:.6} (tile {})", a.percentile(1.0), a.percentile(0.0), a.worst());
    card(html, "Cosine to float, mean", &format!("{:.6}", a.mean()), &least);
    if let Some(overlap) = ends.overlap {
        card(html, "Neighbour overlap", &format!("{overlap:.4}"), &format!("of the {OVERLAP} nearest tiles"));
    }
    let relative = format!("relative error {:.2e}", a.relative_error);
    card(html, "Signal to noise", &format!("{:.1} dB", a.signal_to_noise_db), &relative);
    if let Some([float, quantized]) = ends.accuracy {
        for (name, value) in PROBES {
            let [a, b] = [value(&float), value(&quantized)].map(|v| 100.0 * v);
            let detail = format!("accuracy; float {a:.2} %, difference {:+.2}", b - a);
            card(html, &name.replace("K", &VOTES.to_string()), &format!("{b:.2} %"), &detail);
        }
    }
    html.push_str("</div>");
}

fn table(html: &mut String, report: &Report<'_>) {
    html.push_str(
        "<h2>All layers</h2><p>A place is as good as what leaves it.</p><div class=\"card scroll\"><table><tr><th>Layer</th><th>dB</th>\
         <th>Cosine</th><th>Saturated</th><th>Range</th><th>Bytes</th><th>MACs</th><th>Instructions</th></tr>",
    );
    let mut row = |class: &str, name: &str, map: Option<super::layers::MapError>, bytes: u64, macs: u64| {
        let _ = write!(html, "<tr{class}><td>{name}</td>");
        let _ = match map {
            Some(map) => write!(
                html,
                "<td>{:.1}</td><td>{:.6}</td><td>{}</td><td>{:.3} to {:.3}</td>",
                map.decibels,
                map.cosine,
                share(map.saturated),
                map.range[0],
                map.range[1]
            ),
            None => write!(html, "<td>-</td><td>-</td><td>-</td><td>-</td>"),
        };
        let instructions = report.instructions(macs).map_or("-".into(), thousands);
        let _ = write!(html, "<td>{}</td><td>{}</td><td>{instructions}</td></tr>", thousands(bytes), thousands(macs));
    };
    for (place, layers) in report.places() {
        let last = layers.last().and_then(|layer| layer.map);
        row(" class=\"place\"", place, last, bytes(layers), macs(layers));
        layers.iter().for_each(|layer| row("", layer.name, layer.map, layer.bytes, layer.macs));
    }
    row(" class=\"place\"", "all", None, bytes(&report.layers), macs(&report.layers));
    html.push_str("</table></div>");
    if let Some(per_mac) = &report.per_mac {
        let source = escape(&per_mac.source);
        let _ = write!(html, "<p>{:.3} instructions a multiply-add: {source}.</p>", per_mac.instructions);
    }
}

/// A share of values: `0`, `0.002 %`.
pub(super) fn share(share: f64) -> String {
    match 100.0 * share {
        0.0 => "0".into(),
        percent if percent < 0.001 => "below 0.001 %".into(),
        percent => format!("{percent:.3} %"),
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
