//! The measures as a table and as JSON.

use std::fmt::Write;

use serde_json::{Value, json};

use super::change::Alteration;
use super::measure::Kept;
use crate::report::{OVERLAP, VOTES};

/// A line a rung.
pub fn text(rows: &[Kept]) -> String {
    let mut out = format!(
        "{:<12} {:>6} {:>10} {:>9} {:>9}",
        "rung",
        "bytes",
        format!("recall@{OVERLAP}"),
        format!("{VOTES}-NN"),
        "change"
    );
    for alteration in Alteration::ALL {
        let _ = write!(out, " {:>8}", alteration.name());
    }
    out.push('\n');
    let percent = |share: f64| format!("{:.1} %", 100.0 * share);
    for Kept { rung, bytes, recall, accuracy, change } in rows {
        let accuracy = accuracy.map_or_else(|| "-".into(), percent);
        let (each, all) = match change {
            Some((each, all)) => (each.iter().map(|area| format!("{area:.4}")).collect(), format!("{all:.4}")),
            None => (vec!["-".to_owned(); Alteration::ALL.len()], "-".into()),
        };
        let _ = write!(out, "{rung:<12} {bytes:>6} {:>10} {accuracy:>9} {all:>9}", percent(*recall));
        for area in each {
            let _ = write!(out, " {area:>8}");
        }
        out.push('\n');
    }
    out
}

/// The same for programs.
pub fn json(rows: &[Kept]) -> Value {
    let row = |kept: &Kept| {
        let each = kept.change.as_ref().map(|(each, _)| {
            let pairs =
                Alteration::ALL.iter().zip(each).map(|(alteration, area)| (alteration.name().to_owned(), json!(area)));
            Value::Object(pairs.collect())
        });
        json!({
            "rung": kept.rung.to_string(),
            "bytes": kept.bytes,
            "recall_at_10": kept.recall,
            "accuracy_20nn": kept.accuracy,
            "change_average_precision": kept.change.as_ref().map(|(_, all)| all),
            "change_by_alteration": each,
        })
    };
    rows.iter().map(row).collect()
}
