//! What a change of a run's length entails.

use toml::{Table, Value};

use super::Override;
use super::source::alternative;

/// Removes the other way to give a length where one is changed, and shortens a warm-up that the recipe made for more steps, in
/// proportion. Returns a note about it.
pub(super) fn apply(table: &mut Table, written: &Table, changes: &[Override]) -> Option<String> {
    let changed = |key: &str| changes.iter().any(|change| change.key() == key);
    for key in ["schedule.max_steps", "schedule.epochs"] {
        let other = alternative(key).expect("lengths have alternatives");
        if changed(key)
            && !changed(other)
            && let (Some(Value::Table(schedule)), Some((_, other))) = (table.get_mut("schedule"), other.split_once('.'))
        {
            schedule.remove(other);
        }
    }
    if !changed("schedule.max_steps") || changed("schedule.warmup_steps") {
        return None;
    }
    let number = |table: &Table, key: &str| {
        let value = table.get("schedule")?.as_table()?.get(key)?.as_integer()?;
        u64::try_from(value).ok().filter(|&value| value > 0)
    };
    let (steps, warmup) = (number(table, "max_steps")?, number(table, "warmup_steps")?);
    if warmup <= steps {
        return None;
    }
    // Without a number of steps in the recipe (epochs) the warm-up takes the whole run.
    let planned = number(written, "max_steps").filter(|&planned| planned > steps).unwrap_or(warmup);
    let shorter = ((warmup as f64 * steps as f64 / planned as f64).round() as u64).clamp(1, steps);
    let schedule = table.get_mut("schedule")?.as_table_mut()?;
    schedule.insert("warmup_steps".to_owned(), Value::Integer(i64::try_from(shorter).ok()?));
    Some(format!(
        "note       `schedule.warmup_steps` is {shorter} instead of {warmup}: shortened in proportion to \
         `schedule.max_steps = {steps}`"
    ))
}
