//! The templates for AWS, held against the code: permissions, variables, ports, commands, what the
//! log says. `cfn-lint` holds them against the service's own schema.

use std::collections::{BTreeMap, BTreeSet};

use projector::{
    config::{Inputs, Settings},
    projection::Registry,
    replica::dynamodb::{Operation, table_name},
};
use serde_yaml_ng::Value;

use crate::{
    documents::readme::{chapter, file, json_blocks},
    support::{
        dynamo::Dynamo,
        node::Node,
        process::{World, line, write},
    },
};

fn template(name: &str) -> Value {
    serde_yaml_ng::from_str(&file(&format!("config/aws/{name}.yaml"))).unwrap()
}

fn properties<'a>(template: &'a Value, resource: &str) -> &'a Value {
    let found = &template["Resources"][resource]["Properties"];
    assert!(!found.is_null(), "{resource}");
    found
}

fn container(template: &Value) -> &Value {
    &properties(template, "Task")["ContainerDefinitions"][0]
}

/// A value as it stands, or the default of the parameter that it refers to.
fn resolved(template: &Value, value: &Value) -> String {
    let text = match value {
        Value::Tagged(tagged) if tagged.tag == "!Ref" => {
            let name = tagged.value.as_str().unwrap();
            let parameter = &template["Parameters"][name];
            assert!(!parameter.is_null(), "{name}");
            parameter["Default"].as_str().unwrap_or("given")
        }
        other => other.as_str().unwrap(),
    };
    text.to_owned()
}

/// All statements of a role, those under a condition included, by their names.
fn statements(template: &Value, role: &str) -> BTreeMap<String, Value> {
    let policies = properties(template, role)["Policies"].as_sequence().unwrap();
    let all = policies.iter().flat_map(|policy| {
        let listed = policy["PolicyDocument"]["Statement"].as_sequence().unwrap();
        listed.iter().map(|statement| match statement {
            Value::Tagged(choice) => choice.value[1].clone(),
            plain => plain.clone(),
        })
    });
    all.map(|statement| (statement["Sid"].as_str().unwrap().to_owned(), statement))
        .collect()
}

fn actions(statement: &Value) -> BTreeSet<String> {
    match &statement["Action"] {
        Value::String(one) => BTreeSet::from([one.clone()]),
        many => many
            .as_sequence()
            .unwrap()
            .iter()
            .map(|a| a.as_str().unwrap().to_owned())
            .collect(),
    }
}

#[test]
fn the_roles_have_the_rights_of_the_guide_and_no_more() {
    let template = template("projector");
    let guide = |sid: &str| -> BTreeSet<String> {
        let blocks = json_blocks();
        let statement = blocks
            .iter()
            .map(|b| &b["Statement"][0])
            .find(|s| s["Sid"] == sid)
            .unwrap()
            .clone();
        statement["Action"]
            .as_array()
            .unwrap()
            .iter()
            .map(|a| a.as_str().unwrap().to_owned())
            .collect()
    };
    let sent = |operations: &[Operation]| -> BTreeSet<String> {
        operations.iter().map(|o| format!("dynamodb:{}", o.name())).collect()
    };
    let running = statements(&template, "TaskRole");
    assert_eq!(running.keys().collect::<Vec<_>>(), ["Replicas", "TablesKey"]);
    assert_eq!(actions(&running["Replicas"]), guide("Replicas"));
    assert_eq!(actions(&running["Replicas"]), sent(&Operation::RUNNING));
    let provisioning = statements(&template, "ProvisioningRole");
    assert_eq!(provisioning.keys().collect::<Vec<_>>(), ["Provisioning", "Replicas"]);
    assert_eq!(provisioning["Replicas"], running["Replicas"]);
    assert_eq!(actions(&provisioning["Provisioning"]), guide("Provisioning"));
    assert_eq!(actions(&provisioning["Provisioning"]), sent(&Operation::PROVISIONING));
    let starting = statements(&template, "ExecutionRole");
    let all = [running, provisioning, starting];
    for (sid, statement) in all.iter().flatten() {
        let resource = serde_yaml_ng::to_string(&statement["Resource"]).unwrap();
        let everything = resource.trim() == "'*'";
        assert_eq!(everything, sid == "ImageToken", "{sid}: {resource}");
        for action in actions(statement) {
            let verbs = action.split(':').nth(1).unwrap();
            assert!(verbs.len() > 1 && verbs != "Scan", "{sid}: {action}");
        }
    }
    // Secrets by their full names, which the parameters insist on.
    for secret in container(&template)["Secrets"].as_sequence().unwrap() {
        let Value::Tagged(parameter) = &secret["ValueFrom"] else {
            panic!("{secret:?}")
        };
        let pattern = &template["Parameters"][parameter.value.as_str().unwrap()]["AllowedPattern"];
        assert!(pattern.as_str().unwrap().ends_with("-[A-Za-z0-9]{6}"), "{pattern:?}");
    }
}

#[test]
fn the_variables_are_settings_and_the_port_is_the_pages() {
    let template = template("projector");
    let container = container(&template);
    let listed = |key: &str, value: &str| -> Vec<(String, String)> {
        let items = container[key].as_sequence().unwrap().iter();
        items
            .map(|item| {
                (
                    item["Name"].as_str().unwrap().to_owned(),
                    resolved(&template, &item[value]),
                )
            })
            .collect()
    };
    let mut environment: BTreeMap<_, _> = listed("Environment", "Value").into_iter().collect();
    environment.extend(listed("Secrets", "ValueFrom"));
    // What the image sets.
    environment.insert("PROJECTOR_ENV".into(), "docker".into());
    let inputs = Inputs {
        dir: Some(std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("config")),
        environment,
        flags: Vec::new(),
    };
    let settings = Settings::load(&inputs).unwrap();
    assert_eq!(settings.plan(&Registry::new("x")).unwrap().len(), 1);
    assert!(settings.http.listen.ip().is_unspecified());
    // Nobody's password stands in the template, and no variable is a way to another store.
    assert!(settings.dynamodb.endpoint.is_none() && settings.eventstore.password.is_some());

    let port = u64::from(settings.http.listen.port());
    assert_eq!(container["PortMappings"][0]["ContainerPort"].as_u64(), Some(port));
    let ingress = &properties(&template, "SecurityGroup")["SecurityGroupIngress"];
    assert_eq!(ingress.as_sequence().unwrap().len(), 1);
    assert_eq!(
        (ingress[0]["FromPort"].as_u64(), ingress[0]["ToPort"].as_u64()),
        (Some(port), Some(port))
    );
    assert!(chapter("ecs").contains(&format!("(port {port}, type A)")));

    let stop = container["StopTimeout"].as_u64().unwrap();
    assert!(
        stop > settings.engine.drain.0.as_secs() + 3,
        "room to close after draining"
    );
    let health = &container["HealthCheck"];
    let words: Vec<_> = health["Command"]
        .as_sequence()
        .unwrap()
        .iter()
        .map(|w| resolved(&template, w))
        .collect();
    assert_eq!(words[0], "CMD");
    assert_eq!(words[2..], ["health", "--startup"]);
    let dockerfile = file("Dockerfile");
    assert!(dockerfile.contains(&format!("CMD [\"{}\", \"health\"]", words[1])));
    // The image's command, which `run-task` puts another in the place of.
    let command: Vec<_> = container["Command"]
        .as_sequence()
        .unwrap()
        .iter()
        .map(|w| w.as_str().unwrap())
        .collect();
    assert!(dockerfile.contains(&format!(
        "ENTRYPOINT [\"{}\"]\nCMD {}",
        words[1],
        serde_json::to_string(&command).unwrap()
    )));
    assert!(health["StartPeriod"].as_u64().unwrap() <= 300, "ECS takes no more");
    assert_eq!(container["ReadonlyRootFilesystem"].as_bool(), Some(true));
    assert_eq!(
        container["LogConfiguration"]["Options"]["mode"].as_str(),
        Some("non-blocking")
    );
    let breaker = &properties(&template, "Service")["DeploymentConfiguration"]["DeploymentCircuitBreaker"];
    assert_eq!(
        (breaker["Enable"].as_bool(), breaker["Rollback"].as_bool()),
        (Some(true), Some(true))
    );
}

#[test]
fn the_table_is_the_one_that_the_daemon_looks_for() {
    let template = template("tables");
    let table = properties(&template, "Table");
    let Value::Tagged(name) = &table["TableName"] else {
        panic!("{table:?}")
    };
    let name = name.value.as_str().unwrap();
    let prefix = template["Parameters"]["TablePrefix"]["Default"].as_str().unwrap();
    assert_eq!(prefix, Settings::default().dynamodb.table_prefix);
    let filled = name
        .replace("${TablePrefix}", prefix)
        .replace("${Projection}", "orders")
        .replace("${Schema}", "7");
    assert_eq!(filled, table_name(prefix, "orders", 7).unwrap());
    assert_eq!(table["KeySchema"][0]["AttributeName"].as_str(), Some("pk"));
    assert_eq!(table["KeySchema"].as_sequence().unwrap().len(), 1);
    assert_eq!(table["AttributeDefinitions"][0]["AttributeType"].as_str(), Some("S"));
    assert_eq!(table["DeletionProtectionEnabled"].as_bool(), Some(true));
    let recovery = &table["PointInTimeRecoverySpecification"];
    assert_eq!(recovery["PointInTimeRecoveryEnabled"].as_bool(), Some(true));
    assert_eq!(
        template["Resources"]["Table"]["DeletionPolicy"].as_str(),
        Some("Retain")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_figures_that_alarms_and_scaling_read_are_in_the_log() {
    let (node, dynamo) = (Node::start().await, Dynamo::start().await);
    let world = World::new(&node.url(), &dynamo.endpoint, &dynamo.prefix).with("LOG__SUMMARY_EVERY", "1s");
    let dir = tempfile::tempdir().unwrap();
    let events = write(
        dir.path(),
        "events",
        &line("order-1", "Placed", &serde_json::json!({ "total": 7 })),
    );
    assert_eq!(world.run(&["import", &events]).await.code, 0);
    let mut daemon = world.daemon().await;
    let summary = daemon.logged("summary").await;
    let template = template("projector");
    let mut asked = BTreeSet::new();
    for (name, resource) in template["Resources"].as_mapping().unwrap() {
        if resource["Type"].as_str() != Some("AWS::Logs::MetricFilter") {
            continue;
        }
        let filter = resource["Properties"]["FilterPattern"].as_str().unwrap();
        let fields = filter.split("$.").skip(1).map(|rest| rest.split(' ').next().unwrap());
        for field in fields {
            // Lag is not known before it was measured.
            let known = !summary[field].is_null() || field == "lag_seconds";
            assert!(known, "{name:?}: {field} in {summary}");
            asked.insert(field.to_owned());
        }
    }
    for field in ["drain_seconds", "lag_seconds", "quarantined", "phase", "message"] {
        assert!(asked.contains(field), "{field}");
    }
    assert!(summary["drain_seconds"].is_number() && summary["quarantined"].is_number());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_guides_one_off_work_is_commands_that_there_are() {
    let guide = chapter("ecs");
    let world = World::default();
    let mut seen = 0;
    for overrides in guide
        .lines()
        .filter_map(|line| line.strip_prefix("once '")?.strip_suffix('\''))
    {
        let overrides: serde_json::Value = serde_json::from_str(overrides).unwrap();
        let container = &overrides["containerOverrides"][0];
        assert_eq!(container["name"], "projector", "the container's name in the template");
        let mut words: Vec<_> = container["command"]
            .as_array()
            .unwrap()
            .iter()
            .map(|w| w.as_str().unwrap())
            .collect();
        // The whole line is understood, and nothing is done.
        words.push("--help");
        let done = world.run(&words).await;
        assert_eq!(done.code, 0, "{words:?}: {done:?}");
        seen += 1;
    }
    assert!(seen >= 5, "{seen}");
    assert_eq!(container(&template("projector"))["Name"].as_str(), Some("projector"));
}
