//! Firecracker's API description (Swagger 2.0), as far as a contract needs it: routes, bodies, statuses.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;

#[derive(Debug, Deserialize)]
pub(crate) struct Spec {
    pub(crate) paths: BTreeMap<String, BTreeMap<String, Operation>>,
    definitions: BTreeMap<String, Schema>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Operation {
    #[serde(default)]
    parameters: Vec<Parameter>,
    responses: BTreeMap<Status, Response>,
}

#[derive(Debug, Deserialize)]
struct Parameter {
    #[serde(rename = "in")]
    place: String,
    schema: Option<Schema>,
}

/// A status as YAML has it: a number, or the word `default`.
#[derive(Debug, Deserialize, PartialEq, Eq, PartialOrd, Ord)]
#[serde(untagged)]
enum Status {
    Code(u16),
    Word(String),
}

#[derive(Debug, Deserialize)]
struct Response {
    schema: Option<Schema>,
}

#[derive(Debug, Clone, Default, Deserialize)]
pub(crate) struct Schema {
    #[serde(rename = "$ref")]
    reference: Option<String>,
    #[serde(rename = "type")]
    kind: Option<String>,
    #[serde(default)]
    pub(crate) required: Vec<String>,
    #[serde(default)]
    pub(crate) properties: BTreeMap<String, Schema>,
    #[serde(rename = "enum", default)]
    choices: Vec<Value>,
    minimum: Option<i64>,
    maximum: Option<i64>,
    items: Option<Box<Schema>>,
}

impl Spec {
    /// Reads the description from `WRENN_FIRECRACKER_API`, else from `shared/` beside the checkout; where there is
    /// neither, says so and returns none.
    pub(crate) fn load() -> Option<Self> {
        let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/firecracker-api.yaml");
        let named = std::env::var_os("WRENN_FIRECRACKER_API").map(PathBuf::from);
        let required = named.is_some();
        let path = named.unwrap_or(beside);
        if !required && !path.exists() {
            eprintln!(
                "SKIP: Firecracker's API description is not at {} (name it in WRENN_FIRECRACKER_API)",
                path.display()
            );
            return None;
        }
        let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        Some(serde_yaml_ng::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display())))
    }

    pub(crate) fn definition(&self, name: &str) -> &Schema {
        self.definitions.get(name).unwrap_or_else(|| panic!("the description has no {name}"))
    }

    /// Follows references to the schema itself.
    pub(crate) fn resolve<'a>(&'a self, schema: &'a Schema) -> &'a Schema {
        match &schema.reference {
            Some(reference) => {
                let name = reference.strip_prefix("#/definitions/").expect("references stay in the file");
                self.resolve(self.definition(name))
            }
            None => schema,
        }
    }

    /// The route that a request's path belongs to, as the description spells it: `/drives/{drive_id}`.
    pub(crate) fn route(&self, method: &str, path: &str) -> Result<(&str, &Operation), String> {
        let matches = |template: &str| {
            let (mut t, mut p) = (template.split('/'), path.split('/'));
            loop {
                match (t.next(), p.next()) {
                    (None, None) => return true,
                    (Some(t), Some(p)) if t == p || (t.starts_with('{') && !p.is_empty()) => {}
                    _ => return false,
                }
            }
        };
        let found = self.paths.iter().find(|(template, _)| matches(template));
        let (template, operations) = found.ok_or_else(|| format!("no route {path}"))?;
        let operation = operations.get(&method.to_lowercase());
        Ok((template, operation.ok_or_else(|| format!("{path} has no {method}"))?))
    }

    /// The body that an operation takes.
    pub(crate) fn body<'a>(&'a self, operation: &'a Operation) -> Option<&'a Schema> {
        let body = operation.parameters.iter().find(|parameter| parameter.place == "body")?;
        Some(self.resolve(body.schema.as_ref()?))
    }

    /// What is wrong with a request.
    pub(crate) fn check_request(&self, method: &str, path: &str, body: &[u8]) -> Result<(), String> {
        let (_, operation) = self.route(method, path)?;
        match self.body(operation) {
            None if body.is_empty() => Ok(()),
            None => Err(format!("{method} {path} takes no body")),
            Some(schema) => {
                let value = serde_json::from_slice(body).map_err(|error| error.to_string())?;
                self.check(schema, &value, "body")
            }
        }
    }

    /// What is wrong with an answer. An error status that is not listed must be covered by `default`.
    pub(crate) fn check_response(
        &self,
        method: &str,
        path: &str,
        status: u16,
        body: &[u8],
    ) -> Result<(), String> {
        let (_, operation) = self.route(method, path)?;
        let listed = operation.responses.get(&Status::Code(status));
        let fallback = || operation.responses.get(&Status::Word("default".into())).filter(|_| status >= 400);
        let response = listed.or_else(fallback);
        let response = response.ok_or_else(|| format!("{method} {path} cannot answer {status}"))?;
        match &response.schema {
            None if body.is_empty() => Ok(()),
            None => Err(format!("{method} {path}: {status} has no body")),
            Some(schema) => {
                let value = serde_json::from_slice(body).map_err(|error| error.to_string())?;
                self.check(schema, &value, "answer")
            }
        }
    }

    /// What is wrong with a value, stricter than the description in one point: it may hold no unknown field.
    pub(crate) fn check(&self, schema: &Schema, value: &Value, at: &str) -> Result<(), String> {
        let schema = self.resolve(schema);
        let kind = schema.kind.as_deref().unwrap_or("object");
        let fits = match kind {
            "object" => value.is_object(),
            "array" => value.is_array(),
            "string" => value.is_string(),
            "integer" => value.is_i64() || value.is_u64(),
            "boolean" => value.is_boolean(),
            other => return Err(format!("{at}: the test does not know the type {other}")),
        };
        if !fits {
            return Err(format!("{at} is {value}, not of type {kind}"));
        }
        if !schema.choices.is_empty() && !schema.choices.contains(value) {
            return Err(format!("{at} is {value}, none of {:?}", schema.choices));
        }
        if let Some(number) = value.as_i64() {
            let (low, high) = (schema.minimum.unwrap_or(i64::MIN), schema.maximum.unwrap_or(i64::MAX));
            if !(low..=high).contains(&number) {
                return Err(format!("{at} is {number}, not within {low} and {high}"));
            }
        }
        for (index, item) in value.as_array().into_iter().flatten().enumerate() {
            let items = schema.items.as_ref().expect("the description says what an array holds");
            self.check(items, item, &format!("{at}[{index}]"))?;
        }
        self.check_fields(schema, value, at)
    }

    fn check_fields(&self, schema: &Schema, value: &Value, at: &str) -> Result<(), String> {
        let Some(fields) = value.as_object() else { return Ok(()) };
        for (name, value) in fields {
            let schema = schema.properties.get(name).ok_or_else(|| format!("{at} has no field {name}"))?;
            self.check(schema, value, &format!("{at}.{name}"))?;
        }
        match schema.required.iter().find(|name| !fields.contains_key(*name)) {
            Some(name) => Err(format!("{at} lacks the field {name}")),
            None => Ok(()),
        }
    }

    /// The smallest valid value: what is required and nothing else.
    pub(crate) fn minimal(&self, schema: &Schema) -> Value {
        let schema = self.resolve(schema);
        if schema.kind.as_deref().unwrap_or("object") != "object" {
            return self.samples(schema).swap_remove(0);
        }
        let field = |name: &String| (name.clone(), self.minimal(&schema.properties[name]));
        Value::Object(schema.required.iter().map(field).collect())
    }

    /// Valid values that meet every choice and both ends of a range.
    pub(crate) fn samples(&self, schema: &Schema) -> Vec<Value> {
        let schema = self.resolve(schema);
        if !schema.choices.is_empty() {
            return schema.choices.clone();
        }
        match schema.kind.as_deref().unwrap_or("object") {
            "string" => vec!["sample".into()],
            "boolean" => vec![true.into(), false.into()],
            "integer" => [schema.minimum, schema.maximum, Some(64)]
                .into_iter()
                .flatten()
                .filter(|n| {
                    schema.minimum.is_none_or(|low| *n >= low) && schema.maximum.is_none_or(|high| *n <= high)
                })
                .map(Value::from)
                .collect(),
            "array" => {
                let items = schema.items.as_ref().expect("the description says what an array holds");
                vec![Value::Array(Vec::new()), Value::Array(self.samples(items))]
            }
            _ => self.bodies(schema),
        }
    }

    /// Valid objects: the minimal one, and it with each field in turn at each of its samples.
    pub(crate) fn bodies(&self, schema: &Schema) -> Vec<Value> {
        let schema = self.resolve(schema);
        let minimal = self.minimal(schema);
        let mut bodies = vec![minimal.clone()];
        for (name, property) in &schema.properties {
            for sample in self.samples(property) {
                let mut body = minimal.clone();
                body[name] = sample;
                bodies.push(body);
            }
        }
        bodies
    }
}
