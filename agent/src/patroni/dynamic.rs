//! Pure: what Patroni's dynamic configuration has to say while an operation lasts, as patches of it, and how it is taken out again.
//!
//! What was put in lies beside it, under the key `pgleap` (Patroni passes over what it does not know): it is written in the same
//! moment, survives every host, and is found by whoever leads later.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::error::{Doing, Result, StepError};

/// Where the records of operations lie.
const KEY: &str = "pgleap";

/// What one operation has changed.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
struct Record {
    /// Entries of `ignore_slots` that were not there before.
    #[serde(default)]
    ignore_slots: Vec<Value>,
    /// There was an `ignore_slots`, be it an empty one.
    #[serde(default)]
    had_ignore_slots: bool,
    /// The rules for clients, as they were before they were taken out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pg_hba: Option<Vec<Value>>,
}

/// How far the rules for clients are.
#[derive(Debug, Clone, PartialEq)]
pub enum Rules {
    /// There are none that Patroni would write.
    Gone,
    /// They are there and were not touched, or somebody has written them anew.
    There,
    /// They have a comment of this operation behind them; whole, as they are.
    Marked(Vec<Value>),
}

/// The rules for clients in it; none when it has none.
pub fn rules(config: &Value) -> Option<Vec<Value>> {
    config["postgresql"]["pg_hba"].as_array().filter(|rules| !rules.is_empty()).cloned()
}

/// Whether an operation has taken the rules for clients out.
pub fn is_released(config: &Value) -> bool {
    let records = config[KEY].as_object().into_iter().flatten();
    records.into_iter().any(|(_, record)| !record["pg_hba"].is_null())
}

/// How far the rules are for this operation.
pub fn stage(config: &Value, operation: &str) -> Rules {
    match rules(config) {
        None => Rules::Gone,
        Some(rules) if rules.last() == Some(&mark(operation)) => Rules::Marked(rules),
        Some(_) => Rules::There,
    }
}

fn mark(operation: &str) -> Value {
    json!(format!("# taken out by pgleap for operation {operation}, which puts it back"))
}

fn record(config: &Value, operation: &str) -> Result<Option<Record>> {
    match &config[KEY][operation] {
        Value::Null => Ok(None),
        record => serde_json::from_value(record.clone())
            .map(Some)
            .doing(|| format!("{KEY}.{operation} in Patroni's configuration was edited; correct it")),
    }
}

fn spared(config: &Value) -> Result<Vec<Value>> {
    match &config["ignore_slots"] {
        Value::Null => Ok(Vec::new()),
        Value::Array(entries) => Ok(entries.clone()),
        other => Err(StepError::new(format!(
            "ignore_slots in Patroni's configuration is no list ({other}), so that Patroni spares no slot; correct it with patronictl \
             edit-config, then retry"
        ))),
    }
}

/// What to send so that these slots are spared; none when they are.
///
/// # Errors
/// When what is there cannot be understood.
pub fn spare(config: &Value, operation: &str, slots: &[Value]) -> Result<Option<Value>> {
    let (mut entries, found) = (spared(config)?, record(config, operation)?);
    let missing: Vec<Value> = slots.iter().filter(|slot| !entries.contains(slot)).cloned().collect();
    if missing.is_empty() && found.is_some() {
        return Ok(None);
    }
    let mut record = found.unwrap_or_else(|| Record {
        had_ignore_slots: !config["ignore_slots"].is_null(),
        ..Record::default()
    });
    record.ignore_slots.extend(
        missing.iter().filter(|slot| !record.ignore_slots.contains(slot)).cloned().collect::<Vec<_>>(),
    );
    entries.extend(missing);
    Ok(Some(json!({"ignore_slots": entries, KEY: {operation: record}})))
}

/// What to send so that the rules have a comment behind them, and are remembered without it: whether that comment arrives in
/// the file tells whether it is from here that Patroni takes them.
///
/// # Errors
/// When what is there cannot be understood.
pub fn mark_rules(config: &Value, operation: &str) -> Result<Value> {
    let rules = rules(config).unwrap_or_default();
    let mut record = record(config, operation)?.unwrap_or_default();
    record.pg_hba = Some(rules.clone());
    let marked: Vec<Value> = rules.into_iter().chain([mark(operation)]).collect();
    Ok(json!({"postgresql": {"pg_hba": marked}, KEY: {operation: record}}))
}

/// What to send so that Patroni writes no rules any more; the file stays as it is.
pub fn release_rules() -> Value {
    json!({"postgresql": {"pg_hba": null}})
}

/// What to send to take the rules back in; none when that is not needed. The note tells of what somebody did meanwhile.
///
/// # Errors
/// When what is there cannot be understood.
pub fn restore_rules(config: &Value, operation: &str) -> Result<Option<(Value, Option<String>)>> {
    let Some(Record { pg_hba: Some(before), .. }) = record(config, operation)? else { return Ok(None) };
    let forget = json!({operation: {"pg_hba": null}});
    Ok(Some(match stage(config, operation) {
        Rules::There => {
            let note = format!(
                "postgresql.pg_hba was set by somebody while it was taken out, and stays as it is; before, it was {}",
                json!(before)
            );
            (json!({KEY: forget}), Some(note))
        }
        Rules::Gone | Rules::Marked(_) => (json!({"postgresql": {"pg_hba": before}, KEY: forget}), None),
    }))
}

/// What to send so that the slots are no longer spared; none when nothing of this operation is there. Of its record only the
/// rules stay, if they are not back in.
///
/// # Errors
/// When what is there cannot be understood.
pub fn unspare(config: &Value, operation: &str) -> Result<Option<Value>> {
    let Some(record) = record(config, operation)? else { return Ok(None) };
    let mut entries = spared(config)?;
    entries.retain(|entry| !record.ignore_slots.contains(entry));
    let mut patch = Map::new();
    if !config["ignore_slots"].is_null() {
        let nothing = entries.is_empty() && !record.had_ignore_slots;
        patch.insert("ignore_slots".to_owned(), if nothing { Value::Null } else { json!(entries) });
    }
    let others = config[KEY].as_object().map_or(0, |records| records.len()) > 1;
    let own = match &record.pg_hba {
        Some(rules) if record.ignore_slots.is_empty() && !record.had_ignore_slots && !rules.is_empty() => {
            return Ok(None);
        }
        Some(rules) => json!({operation: {"pg_hba": rules, "ignore_slots": [], "had_ignore_slots": false}}),
        None if others => json!({operation: null}),
        None => Value::Null,
    };
    patch.insert(KEY.to_owned(), own);
    Ok(Some(Value::Object(patch)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const OPERATION: &str = "ledger-1";

    /// As Patroni merges a patch (its utils.py, `patch_config`).
    fn apply(config: &mut Value, patch: &Value) {
        for (name, value) in patch.as_object().unwrap() {
            let config = config.as_object_mut().unwrap();
            match value {
                Value::Null => drop(config.remove(name)),
                Value::Object(_) if config.get(name).is_some_and(Value::is_object) => {
                    apply(config.get_mut(name).unwrap(), value);
                }
                // A dictionary that is new is taken as it is, nulls included.
                _ => drop(config.insert(name.clone(), value.clone())),
            }
        }
    }

    fn slot(name: &str) -> Value {
        json!({"name": name, "type": "logical"})
    }

    fn protect(config: &mut Value, slots: &[Value]) {
        if let Some(patch) = spare(config, OPERATION, slots).unwrap() {
            apply(config, &patch);
        }
        assert_eq!(spare(config, OPERATION, slots).unwrap(), None, "in force, and again nothing to do");
        if rules(config).is_some() {
            apply(config, &mark_rules(config, OPERATION).unwrap());
            assert!(matches!(stage(config, OPERATION), Rules::Marked(_)));
            apply(config, &release_rules());
        }
        assert_eq!(stage(config, OPERATION), Rules::Gone);
    }

    fn take_back(config: &mut Value) -> Option<String> {
        let mut told = None;
        if let Some((patch, note)) = restore_rules(config, OPERATION).unwrap() {
            apply(config, &patch);
            told = note;
        }
        if let Some(patch) = unspare(config, OPERATION).unwrap() {
            apply(config, &patch);
        }
        assert_eq!(restore_rules(config, OPERATION).unwrap(), None);
        assert_eq!(unspare(config, OPERATION).unwrap(), None);
        told
    }

    #[test]
    fn merges_behind_what_is_there_and_takes_out_only_its_own() {
        let theirs = json!({"type": "logical", "plugin": "wal2json"});
        let mut config = json!({"ttl": 30, "ignore_slots": [theirs, slot("a")]});
        protect(&mut config, &[slot("a"), slot("b")]);
        assert_eq!(config["ignore_slots"], json!([theirs, slot("a"), slot("b")]));
        // Somebody adds one while the operation lasts.
        config["ignore_slots"].as_array_mut().unwrap().push(slot("c"));
        take_back(&mut config);
        assert_eq!(config, json!({"ttl": 30, "ignore_slots": [theirs, slot("a"), slot("c")]}));
    }

    #[test]
    fn rules_that_somebody_set_meanwhile_stay() {
        let mut config = json!({"postgresql": {"pg_hba": ["local all all peer"]}});
        protect(&mut config, &[slot("a")]);
        config["postgresql"]["pg_hba"] = json!(["theirs"]);
        assert_eq!(stage(&config, OPERATION), Rules::There);
        let note = take_back(&mut config).unwrap();
        assert!(note.contains("local all all peer"), "{note}");
        assert_eq!(config, json!({"postgresql": {"pg_hba": ["theirs"]}}));
    }

    #[test]
    fn at_the_end_the_rules_may_stay_out_and_are_remembered() {
        let mut config = json!({"postgresql": {"pg_hba": ["local all all peer"]}});
        protect(&mut config, &[slot("a")]);
        let patch = unspare(&config, OPERATION).unwrap().unwrap();
        apply(&mut config, &patch);
        assert_eq!(unspare(&config, OPERATION).unwrap(), None, "done");
        assert!(config.get("ignore_slots").is_none() && rules(&config).is_none());
        assert_eq!(config[KEY][OPERATION]["pg_hba"], json!(["local all all peer"]));
        assert!(is_released(&config));
    }

    #[test]
    fn what_is_no_list_is_refused() {
        let config = json!({"ignore_slots": {"name": "a"}});
        assert!(spare(&config, OPERATION, &[slot("b")]).unwrap_err().message.contains("is no list"));
    }

    proptest! {
        #[test]
        fn taken_back_everything_is_exactly_as_it_was(
            had in prop::option::of(prop::collection::vec("[abc]", 0..3)),
            rules in prop::option::of(prop::collection::vec("local [a-z]{1,3}", 0..3)),
            slots in prop::collection::vec("[a-e]", 1..4),
            other in any::<bool>(),
        ) {
            let mut config = json!({"ttl": 20, "postgresql": {"parameters": {"wal_level": "logical"}}});
            if let Some(had) = had {
                let mut names = had; names.sort(); names.dedup();
                config["ignore_slots"] = names.iter().map(|name| slot(name)).collect();
            }
            if let Some(rules) = rules {
                config["postgresql"]["pg_hba"] = json!(rules);
            }
            if other {
                config[KEY] = json!({"other-1": {"ignore_slots": [], "had_ignore_slots": true}});
            }
            let before = config.clone();
            let mut slots: Vec<Value> = slots.iter().map(|name| slot(name)).collect();
            slots.dedup();
            protect(&mut config, &slots);
            for wanted in &slots {
                prop_assert!(config["ignore_slots"].as_array().unwrap().contains(wanted));
            }
            take_back(&mut config);
            prop_assert_eq!(config, before);
        }
    }
}
