//! The plots of a report, as SVG in the page's colours.

use std::fmt::Write;

use super::escape;
use crate::report::Report;
use crate::report::text::{bytes, macs};

const WIDTH: f64 = 1060.0;
/// Room for the labels of the vertical axis.
const LEFT: f64 = 44.0;

fn open(height: f64, label: &str) -> String {
    format!("<svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-label=\"{label}\">")
}

fn text(svg: &mut String, x: f64, y: f64, anchor: &str, text: &str) {
    let _ = write!(svg, "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{}</text>", escape(text));
}

/// Share of saturated values from which on a layer is marked.
const MARKED: f64 = 1e-4;

/// A dot a layer over the way through the network, with a name a place.
pub fn signal_to_noise(report: &Report<'_>) -> String {
    const TOP: f64 = 14.0;
    const BOTTOM: f64 = 230.0;
    let maps = || report.layers.iter().filter_map(|layer| layer.map);
    // Input is almost exact and would squeeze the rest.
    let highest = maps().map(|map| map.decibels).fold(20.0f64, f64::max).min(70.0);
    let highest = (highest / 10.0).ceil() * 10.0;
    let y = |decibels: f64| BOTTOM - (BOTTOM - TOP) * decibels.clamp(0.0, highest) / highest;
    let step = (WIDTH - LEFT - 10.0) / report.layers.len().max(1) as f64;
    let x = |index: usize| LEFT + step * (index as f64 + 0.5);
    let mut svg = open(BOTTOM + 62.0, "Signal to noise of each layer in decibels");
    for decibels in (0..=highest as u32).step_by(10) {
        let at = y(decibels.into());
        let _ = write!(svg, "<path class=\"grid\" d=\"M{LEFT} {at:.1}H{WIDTH}\"/>");
        text(&mut svg, LEFT - 6.0, at + 4.0, "end", &if decibels == 0 { "0 dB".into() } else { decibels.to_string() });
    }
    let points = report.layers.iter().enumerate().filter_map(|(i, layer)| Some((i, layer, layer.map?)));
    let path: Vec<String> = points.clone().map(|(i, _, map)| format!("{:.1} {:.1}", x(i), y(map.decibels))).collect();
    let _ = write!(svg, "<path class=\"line\" d=\"M{}\"/>", path.join("L"));
    for (i, layer, map) in points {
        let class = if map.saturated > MARKED { "bar warn" } else { "dot" };
        let _ = write!(
            svg,
            "<circle class=\"{class}\" cx=\"{:.1}\" cy=\"{:.1}\" r=\"4\"><title>{} {}: {:.1} dB</title></circle>",
            x(i),
            y(map.decibels),
            layer.place,
            layer.name,
            map.decibels
        );
    }
    let mut first = 0;
    for (place, layers) in report.places() {
        let at = LEFT + step * first as f64;
        let _ = write!(svg, "<path class=\"grid\" d=\"M{at:.1} {TOP}V{}\"/>", BOTTOM + 6.0);
        let middle = at + step * layers.len() as f64 / 2.0;
        let _ = write!(
            svg,
            "<text transform=\"translate({:.1} {:.1}) rotate(-40)\" text-anchor=\"end\">{place}</text>",
            middle + 4.0,
            BOTTOM + 14.0
        );
        first += layers.len();
    }
    svg + "</svg>"
}

/// A histogram of the tiles over 1 - cosine, in steps of a third of a power of ten; the nearest to 1 to the right.
pub fn cosines(cosines: &[f64]) -> String {
    const TOP: f64 = 20.0;
    const BOTTOM: f64 = 170.0;
    /// Powers of ten shown, and steps of each.
    const POWERS: [i32; 2] = [-8, 0];
    const STEPS: usize = 3;
    let bins = (POWERS[1] - POWERS[0]) as usize * STEPS;
    let mut counts = vec![0usize; bins];
    for cosine in cosines {
        let power = (1.0 - cosine).max(1e-300).log10();
        let at = (f64::from(POWERS[1]) - power) * STEPS as f64;
        counts[(at.max(0.0) as usize).min(bins - 1)] += 1;
    }
    let most = counts.iter().copied().max().unwrap_or(0).max(1) as f64;
    let step = (WIDTH - LEFT - 10.0) / bins as f64;
    let mut svg = open(BOTTOM + 40.0, "Histogram of the cosines");
    let _ = write!(svg, "<path class=\"grid\" d=\"M{LEFT} {BOTTOM}H{WIDTH}\"/>");
    for (bin, &count) in counts.iter().enumerate().filter(|(_, count)| **count > 0) {
        let (left, height) = (LEFT + step * bin as f64, ((BOTTOM - TOP) * count as f64 / most).max(1.5));
        let _ = write!(
            svg,
            "<rect class=\"bar\" x=\"{:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{height:.1}\" rx=\"2\"/>",
            left + 1.0,
            BOTTOM - height,
            step - 2.0
        );
        text(&mut svg, left + step / 2.0, BOTTOM - height - 5.0, "middle", &count.to_string());
    }
    for (at, power) in (POWERS[0]..=POWERS[1]).rev().enumerate() {
        let x = LEFT + step * (at * STEPS) as f64;
        let name = match power {
            0 => "0".into(),
            power if power > -7 => format!("{:.*}", -power as usize, 1.0 - 10f64.powi(power)),
            power => format!("1 - 1e{power}"),
        };
        let _ = write!(svg, "<path class=\"grid\" d=\"M{x:.1} {BOTTOM}v5\"/>");
        let anchor = if power == POWERS[0] { "end" } else { "middle" };
        text(&mut svg, x, BOTTOM + 19.0, anchor, &name);
    }
    svg + "</svg>"
}

/// Two bars a place: its share of the bytes and of the multiply-adds.
pub fn costs(report: &Report<'_>) -> String {
    const ROW: f64 = 30.0;
    const NAMES: f64 = 112.0;
    let all = [bytes(&report.layers), macs(&report.layers)].map(|n| n.max(1) as f64);
    let rows: Vec<(&str, [f64; 2])> = report
        .places()
        .map(|(place, layers)| (place, [bytes(layers) as f64 / all[0], macs(layers) as f64 / all[1]]))
        .collect();
    let largest = rows.iter().flat_map(|(_, shares)| shares).fold(0.01f64, |m, v| m.max(*v));
    let scale = (WIDTH - NAMES - 60.0) / largest;
    let mut svg = open(ROW * rows.len() as f64 + 4.0, "Shares of bytes and multiply-adds of each place");
    for (i, (place, shares)) in rows.iter().enumerate() {
        let top = ROW * i as f64;
        let _ = write!(svg, "<text class=\"ink\" x=\"0\" y=\"{:.1}\">{place}</text>", top + 18.0);
        for (j, (share, class)) in shares.iter().zip(["bar", "bar soft"]).enumerate() {
            let y = top + 3.0 + 12.0 * j as f64;
            let width = (share * scale).max(1.0);
            let _ = write!(
                svg,
                "<rect class=\"{class}\" x=\"{NAMES}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"11\" rx=\"2\"/>"
            );
            text(&mut svg, NAMES + width + 5.0, y + 9.5, "start", &format!("{:.1} %", 100.0 * share));
        }
    }
    svg + "</svg>"
}
