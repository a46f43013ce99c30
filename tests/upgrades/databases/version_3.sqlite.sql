BEGIN TRANSACTION;
CREATE TABLE blobs (
	hash TEXT NOT NULL, 
	data BLOB NOT NULL, 
	size BIGINT NOT NULL, 
	created_at TEXT NOT NULL, 
	PRIMARY KEY (hash)
);
INSERT INTO "blobs" VALUES('83794f225d3eccd44fe332a5031b917d692666dd455512f0bb62a4f74a301f6e',X'5B227878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878225D',1104,'2026-11-27 15:01:39.753000');
INSERT INTO "blobs" VALUES('da9caa954a86b43ae61d9021138bd446f11b43a02be5bdecdae8acf43734c2b6',X'227878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787822',2202,'2026-11-27 15:01:39.757000');
CREATE TABLE bundles (
	hash TEXT NOT NULL, 
	data BLOB NOT NULL, 
	created_at TEXT NOT NULL, 
	PRIMARY KEY (hash)
);
CREATE TABLE code (
	hash TEXT NOT NULL, 
	kind TEXT NOT NULL CHECK (kind IN ('reference', 'value')), 
	reference TEXT, 
	source_hash TEXT, 
	data BLOB, 
	python TEXT NOT NULL, 
	created_at TEXT NOT NULL, 
	bundle TEXT, 
	PRIMARY KEY (hash)
);
INSERT INTO "code" VALUES('95a7a78707febb71033e4da350bebf07d7c8ece5b8894feaac069b0b6d996e3f','reference','tests.upgrades.flows:upgrades_retrying','7b9a60f1ec5c5ca502ead2a69cbabecb2e08d5cdb2b520b8ca18540b3a3bb1cc',NULL,'3.11','2026-11-27 15:01:39.251000',NULL);
INSERT INTO "code" VALUES('54ffbd48e0ba325ec946d6603e0be105ebec24331932f083569c103d59048066','reference','tests.upgrades.flows:upgrades_failing','966eba9af5b450711110af69349babc53be2864893a7e000a86c82df6068cf1c',NULL,'3.11','2026-11-27 15:01:39.267000',NULL);
INSERT INTO "code" VALUES('275434ea06e2c090b95bcec0d1577609e03a3628a9f8fc10dd6560284404cd6b','reference','tests.upgrades.flows:upgrades_sleeping','7b3db9ee70eeb790d8187cf6d14b2d8c600cef27b48feb8d37993109326e79cc',NULL,'3.11','2026-11-27 15:01:39.294000',NULL);
INSERT INTO "code" VALUES('735586c2981190b9a7d072df52a1c4812dcf2bcbd89843f3d9fe3999e4a2cc2a','reference','tests.upgrades.flows:upgrades_asking','9864dce6040204597349833cda66fd8f6cab228fdafcfe92395197aa98b592ed',NULL,'3.11','2026-11-27 15:01:39.310000',NULL);
INSERT INTO "code" VALUES('e659657b580f3f3efff64a41eb3e628db48f17249fece7e2eebc9e09061ebbe3','reference','tests.upgrades.flows:upgrades_listening','62abe431fc4224a57a4022989973957cea0ff7ce7ac0646b4fe29d4bf5accced',NULL,'3.11','2026-11-27 15:01:39.561000',NULL);
INSERT INTO "code" VALUES('ef3ff7d367b252c10f57093644ef760f6325d44508c002ba934e079645b3f428','reference','tests.upgrades.flows:upgrades_parent','1df36c79c337efd68807b9d3c2d357ad59492cd9d3bb4ae38a94313d3ec48eaf',NULL,'3.11','2026-11-27 15:01:39.612000',NULL);
INSERT INTO "code" VALUES('89a47a0d95dcaf8ba8011ca31205096dad4ad574602c139cfc66498f32e79c26','reference','tests.upgrades.flows:upgrades_again','72e6cc60e5a260187f1648ea352e15d3e582f0277be6b891ecf73fba93ce26d1',NULL,'3.11','2026-11-27 15:01:39.678000',NULL);
INSERT INTO "code" VALUES('4a02b9941b7f2ea8491cb24744dd78120f26450af0bfc292ff74a4639941ff62','reference','tests.upgrades.flows:upgrades_wide','b2b880f16a9ab1af1bf47fed6b4cb353f5c78029d26eb177c7384a3eee65b5a8',NULL,'3.11','2026-11-27 15:01:39.720000',NULL);
INSERT INTO "code" VALUES('318d93eb528a098a3ede42fd4fc97ec6071d5403f42cd7ada2b8450748267095','reference','tests.upgrades.flows:upgrades_large','757d7174e5a13229592baa3f938afda23be80d79045db13f8e492671814269c0',NULL,'3.11','2026-11-27 15:01:39.753000',NULL);
INSERT INTO "code" VALUES('5ae7f176d9d9fd5235171cb54bd5f8bbfc19cd2539dd86b0b137828e98f0d64a','reference','tests.upgrades.flows:upgrades_careful','e53cded8a5dea6c922a9e28d98760dd43aa76885f0c4770353b21bd70b85a27d',NULL,'3.11','2026-11-27 15:01:39.787000',NULL);
INSERT INTO "code" VALUES('7694482dc6b9a1aef73df559370dce2873be6256a9cfe9f723d44976ced1e451','reference','tests.upgrades.flows:upgrades_astray','075fade4e5d1ef679f4340d4680b8a2ed03ee2fe0823e28fedbc4aaa52445e65',NULL,'3.11','2026-11-27 15:01:40.094000',NULL);
INSERT INTO "code" VALUES('5eccce11fe3b82a26a3059beaa809a31c3a405a755b9600bf2fde6d4b1bc9263','reference','tests.upgrades.flows:upgrades_daily','3a068e1a471decdfed9a6db543b5f4156e2f8c0f12df123875fbc99b3b0b1dec',NULL,'3.11','2026-11-27 15:01:40.680000',NULL);
INSERT INTO "code" VALUES('975af3139ddafb5c11199ee3213ff9ee8fc228c9499cf3bf62e3e07e9321e255','reference','tests.upgrades.flows:upgrades_cut','2964b7e9c2b7ee0ecf40655cc225a524d19d20cdc2b5f9c299bfb484abe42744',NULL,'3.11','2026-11-27 15:01:45.468000',NULL);
CREATE TABLE engine (
	"key" TEXT NOT NULL, 
	value TEXT NOT NULL, 
	PRIMARY KEY ("key")
);
INSERT INTO "engine" VALUES('storage_id','036718fc5966937b692abc229dc1f739');
INSERT INTO "engine" VALUES('schema_version','3');
CREATE TABLE environments (
	hash TEXT NOT NULL, 
	data TEXT NOT NULL, 
	PRIMARY KEY (hash)
);
CREATE TABLE events (
	run_id TEXT NOT NULL, 
	position INTEGER NOT NULL, 
	type TEXT NOT NULL, 
	timestamp TEXT NOT NULL, 
	data TEXT NOT NULL, 
	PRIMARY KEY (run_id, position), 
	FOREIGN KEY(run_id) REFERENCES runs (run_id) ON DELETE CASCADE
)
 WITHOUT ROWID

;
INSERT INTO "events" VALUES('again',0,'workflow.started','2026-11-27 15:01:39.680401','{"workflow_name":"upgrades_again","args":[1],"kwargs":{},"metadata":null}');
INSERT INTO "events" VALUES('again',1,'step.started','2026-11-27 15:01:39.680401','{"step_id":"upgrades_double#1","step_name":"upgrades_double","args":[1],"kwargs":{},"attempt":1,"options":{"local":true}}');
INSERT INTO "events" VALUES('again',2,'step.completed','2026-11-27 15:01:39.682933','{"step_id":"upgrades_double#1","step_name":"upgrades_double","result":2,"attempt":1,"started_at":"2026-11-27T15:01:39.682800Z","node":"local","worker_pid":24635}');
INSERT INTO "events" VALUES('again',3,'workflow.continued_as_new','2026-11-27 15:01:39.682933','{"new_run_id":"run_2d241f43536d3778","args":[0],"kwargs":{}}');
INSERT INTO "events" VALUES('asking',0,'workflow.started','2026-11-27 15:01:39.312155','{"workflow_name":"upgrades_asking","args":[],"kwargs":{},"metadata":null}');
INSERT INTO "events" VALUES('asking',1,'hook.created','2026-11-27 15:01:39.312155','{"hook_id":"late#1","token":"14742b976af87ecf9d936b3c1b264a7fa0704c549701438f","name":"late","expires_at":"2026-11-27T15:01:39.612155Z"}');
INSERT INTO "events" VALUES('astray',0,'workflow.started','2026-11-27 15:01:40.096687','{"workflow_name":"upgrades_astray","args":[],"kwargs":{},"metadata":null}');
INSERT INTO "events" VALUES('astray',1,'step.started','2026-11-27 15:01:40.096687','{"step_id":"upgrades_double#1","step_name":"upgrades_double","args":[10],"kwargs":{},"attempt":1,"options":{"local":true}}');
INSERT INTO "events" VALUES('astray',2,'step.completed','2026-11-27 15:01:40.221738','{"step_id":"upgrades_double#1","step_name":"upgrades_double","result":20,"attempt":1,"started_at":"2026-11-27T15:01:40.220759Z","node":"local","worker_pid":24635}');
INSERT INTO "events" VALUES('cancelled',0,'workflow.started','2026-11-27 15:01:39.788386','{"workflow_name":"upgrades_careful","args":[],"kwargs":{},"metadata":null}');
INSERT INTO "events" VALUES('cancelled',1,'sleep.started','2026-11-27 15:01:39.788386','{"sleep_id":"sleep#1","resume_at":"2026-11-28T01:01:39.788386Z"}');
INSERT INTO "events" VALUES('cancelled',2,'cancellation.requested','2026-11-27 15:01:39.893494','{"reason":"no more","requested_by":"pid 24635 on a host"}');
INSERT INTO "events" VALUES('cancelled',3,'step.started','2026-11-27 15:01:39.893494','{"step_id":"upgrades_double#1","step_name":"upgrades_double","args":[1],"kwargs":{},"attempt":1,"options":{"local":true}}');
INSERT INTO "events" VALUES('cancelled',4,'step.completed','2026-11-27 15:01:39.907427','{"step_id":"upgrades_double#1","step_name":"upgrades_double","result":2,"attempt":1,"started_at":"2026-11-27T15:01:39.907297Z","node":"local","worker_pid":24635}');
INSERT INTO "events" VALUES('cancelled',5,'workflow.cancelled','2026-11-27 15:01:39.907427','{"reason":"no more"}');
INSERT INTO "events" VALUES('completed',0,'workflow.started','2026-11-27 15:01:39.256344','{"workflow_name":"upgrades_retrying","args":["1ms"],"kwargs":{},"metadata":null}');
INSERT INTO "events" VALUES('completed',1,'step.started','2026-11-27 15:01:39.256344','{"step_id":"upgrades_break#1","step_name":"upgrades_break","args":["once"],"kwargs":{},"attempt":1,"options":{"local":true,"max_retries":1}}');
INSERT INTO "events" VALUES('completed',2,'step.retrying','2026-11-27 15:01:39.259617','{"step_id":"upgrades_break#1","step_name":"upgrades_break","attempt":2,"retry_at":"2026-11-27T15:01:39.260617Z","error":"once","error_type":"ValueError","traceback":"Traceback (most recent call last):\n  File \"/release/tests/upgrades/flows.py\", line 28, in upgrades_break\n    raise ValueError(text)\nValueError: once\n","node":"local","worker_pid":24635}');
INSERT INTO "events" VALUES('completed',3,'step.completed','2026-11-27 15:01:39.264574','{"step_id":"upgrades_break#1","step_name":"upgrades_break","result":"once","attempt":2,"started_at":"2026-11-27T15:01:39.261768Z","node":"local","worker_pid":24635}');
INSERT INTO "events" VALUES('completed',4,'workflow.completed','2026-11-27 15:01:39.264574','{"result":"once"}');
INSERT INTO "events" VALUES('cut',0,'workflow.started','2026-11-27 15:01:45.492905','{"workflow_name":"upgrades_cut","args":[],"kwargs":{},"metadata":null}');
INSERT INTO "events" VALUES('cut',1,'step.started','2026-11-27 15:01:45.492905','{"step_id":"upgrades_fatal#1","step_name":"upgrades_fatal","args":[],"kwargs":{},"attempt":1,"options":{"local":true}}');
INSERT INTO "events" VALUES('failed',0,'workflow.started','2026-11-27 15:01:39.268258','{"workflow_name":"upgrades_failing","args":[],"kwargs":{},"metadata":null}');
INSERT INTO "events" VALUES('failed',1,'step.started','2026-11-27 15:01:39.268258','{"step_id":"upgrades_break#1","step_name":"upgrades_break","args":["always"],"kwargs":{},"attempt":1,"options":{"local":true,"max_retries":1}}');
INSERT INTO "events" VALUES('failed',2,'step.retrying','2026-11-27 15:01:39.270935','{"step_id":"upgrades_break#1","step_name":"upgrades_break","attempt":2,"retry_at":"2026-11-27T15:01:39.271935Z","error":"always","error_type":"ValueError","traceback":"Traceback (most recent call last):\n  File \"/release/tests/upgrades/flows.py\", line 28, in upgrades_break\n    raise ValueError(text)\nValueError: always\n","node":"local","worker_pid":24635}');
INSERT INTO "events" VALUES('failed',3,'step.failed','2026-11-27 15:01:39.274641','{"error":"always","error_type":"ValueError","traceback":"Traceback (most recent call last):\n  File \"/release/tests/upgrades/flows.py\", line 28, in upgrades_break\n    raise ValueError(text)\nValueError: always\n","exception":"gAWVKAAAAAAAAACMCGJ1aWx0aW5zlIwKVmFsdWVFcnJvcpSTlIwGYWx3YXlzlIWUUpQu","python":"3.11","error_details":{"bases":["Exception","BaseException"],"frames":[["/release/tests/upgrades/flows.py","upgrades_break",28,28,8,30,"tests.upgrades.flows"]]},"step_id":"upgrades_break#1","step_name":"upgrades_break","attempt":2,"started_at":"2026-11-27T15:01:39.273498Z","node":"local","worker_pid":24635}');
INSERT INTO "events" VALUES('failed',4,'workflow.failed','2026-11-27 15:01:39.274641','{"error":"always","error_type":"ValueError","traceback":"Traceback (most recent call last):\n  File \"/release/tests/upgrades/flows.py\", line 74, in upgrades_failing\n    await upgrades_break.options(retry_delay=\"1ms\")(\"always\")\n  File \"/release/tests/upgrades/flows.py\", line 28, in upgrades_break\n    raise ValueError(text)\nValueError: always\nStep ''upgrades_break#1'' gave up after 2 attempts, last on node local (pid 24635); cause: error.\n","exception":"gAWVnQAAAAAAAACMCGJ1aWx0aW5zlIwKVmFsdWVFcnJvcpSTlIwGYWx3YXlzlIWUUpR9lIwJX19ub3Rlc19flF2UjF9TdGVwICd1cGdyYWRlc19icmVhayMxJyBnYXZlIHVwIGFmdGVyIDIgYXR0ZW1wdHMsIGxhc3Qgb24gbm9kZSBsb2NhbCAocGlkIDI0NjM1KTsgY2F1c2U6IGVycm9yLpRhc2Iu","python":"3.11","error_details":{"bases":["Exception","BaseException"],"frames":[["/release/tests/upgrades/flows.py","upgrades_failing",74,74,4,61,"tests.upgrades.flows"],["/release/tests/upgrades/flows.py","upgrades_break",28,28,8,30,"tests.upgrades.flows"]]}}');
INSERT INTO "events" VALUES('large',0,'workflow.started','2026-11-27 15:01:39.755622','{"workflow_name":"upgrades_large","args":{"$":"blob","hash":"83794f225d3eccd44fe332a5031b917d692666dd455512f0bb62a4f74a301f6e","size":1104},"kwargs":{},"metadata":null}');
INSERT INTO "events" VALUES('large',1,'step.started','2026-11-27 15:01:39.755622','{"step_id":"upgrades_copy#1","step_name":"upgrades_copy","args":{"$":"blob","hash":"83794f225d3eccd44fe332a5031b917d692666dd455512f0bb62a4f74a301f6e","size":1104},"kwargs":{},"attempt":1,"options":{"local":true}}');
INSERT INTO "events" VALUES('large',2,'step.completed','2026-11-27 15:01:39.757557','{"step_id":"upgrades_copy#1","step_name":"upgrades_copy","result":{"$":"blob","hash":"da9caa954a86b43ae61d9021138bd446f11b43a02be5bdecdae8acf43734c2b6","size":2202},"attempt":1,"started_at":"2026-11-27T15:01:39.757238Z","node":"local","worker_pid":24635}');
INSERT INTO "events" VALUES('large',3,'sleep.started','2026-11-27 15:01:39.757557','{"sleep_id":"sleep#1","resume_at":"2026-11-27T15:01:40.057557Z"}');
INSERT INTO "events" VALUES('listening',0,'workflow.started','2026-11-27 15:01:39.569661','{"workflow_name":"upgrades_listening","args":[],"kwargs":{},"metadata":null}');
INSERT INTO "events" VALUES('parent',0,'workflow.started','2026-11-27 15:01:39.614059','{"workflow_name":"upgrades_parent","args":[],"kwargs":{},"metadata":null}');
INSERT INTO "events" VALUES('parent',1,'child_workflow.started','2026-11-27 15:01:39.614059','{"child_id":"upgrades_sleeping#1","child_run_id":"run_ded5445451f9331c","child_workflow_name":"upgrades_sleeping","args":[1],"kwargs":{}}');
INSERT INTO "events" VALUES('retrying',0,'workflow.started','2026-11-27 15:01:39.279281','{"workflow_name":"upgrades_retrying","args":["500ms"],"kwargs":{},"metadata":null}');
INSERT INTO "events" VALUES('retrying',1,'step.started','2026-11-27 15:01:39.279281','{"step_id":"upgrades_break#1","step_name":"upgrades_break","args":["once"],"kwargs":{},"attempt":1,"options":{"local":true,"max_retries":1}}');
INSERT INTO "events" VALUES('retrying',2,'step.retrying','2026-11-27 15:01:39.280785','{"step_id":"upgrades_break#1","step_name":"upgrades_break","attempt":2,"retry_at":"2026-11-27T15:01:39.780785Z","error":"once","error_type":"ValueError","traceback":"Traceback (most recent call last):\n  File \"/release/tests/upgrades/flows.py\", line 28, in upgrades_break\n    raise ValueError(text)\nValueError: once\n","node":"local","worker_pid":24635}');
INSERT INTO "events" VALUES('run_2d241f43536d3778',0,'workflow.started','2026-11-27 15:01:39.685414','{"workflow_name":"upgrades_again","args":[0],"kwargs":{},"metadata":null}');
INSERT INTO "events" VALUES('run_2d241f43536d3778',1,'step.started','2026-11-27 15:01:39.685414','{"step_id":"upgrades_double#1","step_name":"upgrades_double","args":[0],"kwargs":{},"attempt":1,"options":{"local":true}}');
INSERT INTO "events" VALUES('run_2d241f43536d3778',2,'step.completed','2026-11-27 15:01:39.686293','{"step_id":"upgrades_double#1","step_name":"upgrades_double","result":0,"attempt":1,"started_at":"2026-11-27T15:01:39.686192Z","node":"local","worker_pid":24635}');
INSERT INTO "events" VALUES('run_7f7faa0dfe66bfdc',0,'workflow.started','2026-11-27 15:01:40.745117','{"workflow_name":"upgrades_daily","args":[],"kwargs":{},"metadata":{"schedule_id":"daily","scheduled_at":"2020-01-01T00:00:00+00:00"}}');
INSERT INTO "events" VALUES('run_7f7faa0dfe66bfdc',1,'workflow.completed','2026-11-27 15:01:40.745117','{"result":"fired"}');
INSERT INTO "events" VALUES('run_ded5445451f9331c',0,'workflow.started','2026-11-27 15:01:39.617092','{"workflow_name":"upgrades_sleeping","args":[1],"kwargs":{},"metadata":null}');
INSERT INTO "events" VALUES('run_ded5445451f9331c',1,'step.started','2026-11-27 15:01:39.617092','{"step_id":"upgrades_double#1","step_name":"upgrades_double","args":[1],"kwargs":{},"attempt":1,"options":{"local":true}}');
INSERT INTO "events" VALUES('run_ded5445451f9331c',2,'step.completed','2026-11-27 15:01:39.617920','{"step_id":"upgrades_double#1","step_name":"upgrades_double","result":2,"attempt":1,"started_at":"2026-11-27T15:01:39.617802Z","node":"local","worker_pid":24635}');
INSERT INTO "events" VALUES('run_ded5445451f9331c',3,'sleep.started','2026-11-27 15:01:39.617920','{"sleep_id":"sleep#1","resume_at":"2026-11-27T15:01:39.917920Z"}');
INSERT INTO "events" VALUES('run_e69b1d389bdacba3',0,'workflow.started','2026-11-27 15:01:40.744637','{"workflow_name":"upgrades_daily","args":[],"kwargs":{},"metadata":{"schedule_id":"daily","scheduled_at":"2020-01-02T00:00:00+00:00"}}');
INSERT INTO "events" VALUES('run_e69b1d389bdacba3',1,'workflow.completed','2026-11-27 15:01:40.744637','{"result":"fired"}');
INSERT INTO "events" VALUES('sleeping',0,'workflow.started','2026-11-27 15:01:39.296288','{"workflow_name":"upgrades_sleeping","args":[5],"kwargs":{},"metadata":null}');
INSERT INTO "events" VALUES('sleeping',1,'step.started','2026-11-27 15:01:39.296288','{"step_id":"upgrades_double#1","step_name":"upgrades_double","args":[5],"kwargs":{},"attempt":1,"options":{"local":true}}');
INSERT INTO "events" VALUES('sleeping',2,'step.completed','2026-11-27 15:01:39.298572','{"step_id":"upgrades_double#1","step_name":"upgrades_double","result":10,"attempt":1,"started_at":"2026-11-27T15:01:39.298262Z","node":"local","worker_pid":24635}');
INSERT INTO "events" VALUES('sleeping',3,'sleep.started','2026-11-27 15:01:39.298572','{"sleep_id":"sleep#1","resume_at":"2026-11-27T15:01:39.598572Z"}');
INSERT INTO "events" VALUES('to_cancel',0,'workflow.started','2026-11-27 15:01:40.009820','{"workflow_name":"upgrades_careful","args":[],"kwargs":{},"metadata":null}');
INSERT INTO "events" VALUES('to_cancel',1,'sleep.started','2026-11-27 15:01:40.009820','{"sleep_id":"sleep#1","resume_at":"2026-11-28T01:01:40.009820Z"}');
INSERT INTO "events" VALUES('wide',0,'workflow.started','2026-11-27 15:01:39.728593','{"workflow_name":"upgrades_wide","args":[],"kwargs":{},"metadata":{"colour":"red"}}');
INSERT INTO "events" VALUES('wide',1,'attributes.set','2026-11-27 15:01:39.728593','{"attributes":{"colour":"blue"}}');
INSERT INTO "events" VALUES('wide',2,'side_effect.recorded','2026-11-27 15:01:39.728593','{"name":"side_effect#1","value":5}');
INSERT INTO "events" VALUES('wide',3,'patch.applied','2026-11-27 15:01:39.728593','{"patch_id":"new"}');
INSERT INTO "events" VALUES('wide',4,'step.started','2026-11-27 15:01:39.728593','{"step_id":"upgrades_double#1","step_name":"upgrades_double","args":[0],"kwargs":{},"attempt":1,"options":{"local":true}}');
INSERT INTO "events" VALUES('wide',5,'step.started','2026-11-27 15:01:39.728593','{"step_id":"upgrades_double#2","step_name":"upgrades_double","args":[1],"kwargs":{},"attempt":1,"options":{"local":true}}');
INSERT INTO "events" VALUES('wide',6,'step.started','2026-11-27 15:01:39.728593','{"step_id":"upgrades_double#3","step_name":"upgrades_double","args":[2],"kwargs":{},"attempt":1,"options":{"local":true}}');
INSERT INTO "events" VALUES('wide',7,'step.completed','2026-11-27 15:01:39.738751','{"step_id":"upgrades_double#1","step_name":"upgrades_double","result":0,"attempt":1,"started_at":"2026-11-27T15:01:39.738483Z","node":"local","worker_pid":24635}');
INSERT INTO "events" VALUES('wide',8,'step.completed','2026-11-27 15:01:39.738751','{"step_id":"upgrades_double#2","step_name":"upgrades_double","result":2,"attempt":1,"started_at":"2026-11-27T15:01:39.738562Z","node":"local","worker_pid":24635}');
INSERT INTO "events" VALUES('wide',9,'step.completed','2026-11-27 15:01:39.738751','{"step_id":"upgrades_double#3","step_name":"upgrades_double","result":4,"attempt":1,"started_at":"2026-11-27T15:01:39.738579Z","node":"local","worker_pid":24635}');
CREATE TABLE hooks (
	run_id TEXT NOT NULL, 
	hook_id TEXT NOT NULL, 
	token TEXT NOT NULL, 
	name TEXT NOT NULL, 
	status TEXT NOT NULL, 
	created_at TEXT NOT NULL, 
	received_at TEXT, 
	expires_at TEXT, 
	payload TEXT, 
	payload_schema TEXT, 
	schema_hash TEXT, 
	delivery_key TEXT, 
	metadata TEXT, 
	PRIMARY KEY (run_id, hook_id), 
	FOREIGN KEY(run_id) REFERENCES runs (run_id) ON DELETE CASCADE, 
	UNIQUE (token)
);
INSERT INTO "hooks" VALUES('asking','late#1','14742b976af87ecf9d936b3c1b264a7fa0704c549701438f','late','pending','2026-11-27 15:01:39.411000',NULL,'2026-11-27 15:01:39.612155',NULL,NULL,NULL,NULL,NULL);
CREATE TABLE inbox (
	id INTEGER NOT NULL, 
	run_id TEXT NOT NULL, 
	dedup_key TEXT NOT NULL, 
	kind TEXT NOT NULL, 
	data TEXT NOT NULL, 
	created_at TEXT NOT NULL, 
	read_position INTEGER, 
	PRIMARY KEY (id), 
	UNIQUE (run_id, dedup_key), 
	FOREIGN KEY(run_id) REFERENCES runs (run_id) ON DELETE CASCADE
);
INSERT INTO "inbox" VALUES(1,'cancelled','cancel','cancellation.requested','','2026-11-27 15:01:39.805000',2);
INSERT INTO "inbox" VALUES(2,'astray','signal:0370fc30bdfd4c05836c3641711f16a3','signal.received','{"name":"go","payload":true}','2026-11-27 15:01:40.242000',NULL);
INSERT INTO "inbox" VALUES(3,'listening','signal:early','signal.received','{"name":"price","payload":3}','2026-11-27 15:01:40.759000',NULL);
INSERT INTO "inbox" VALUES(4,'to_cancel','cancel','cancellation.requested','{"reason":"unread","requested_by":"nobody"}','2026-11-27 15:01:40.797000',NULL);
CREATE TABLE run_blobs (
	run_id TEXT NOT NULL, 
	hash TEXT NOT NULL, 
	PRIMARY KEY (run_id, hash), 
	FOREIGN KEY(run_id) REFERENCES runs (run_id) ON DELETE CASCADE, 
	FOREIGN KEY(hash) REFERENCES blobs (hash)
)
 WITHOUT ROWID

;
INSERT INTO "run_blobs" VALUES('large','83794f225d3eccd44fe332a5031b917d692666dd455512f0bb62a4f74a301f6e');
INSERT INTO "run_blobs" VALUES('large','da9caa954a86b43ae61d9021138bd446f11b43a02be5bdecdae8acf43734c2b6');
CREATE TABLE runs (
	run_id TEXT NOT NULL, 
	workflow_name TEXT NOT NULL, 
	status TEXT NOT NULL, 
	code_hash TEXT, 
	environment TEXT DEFAULT '' NOT NULL, 
	coordinator TEXT, 
	owner TEXT, 
	previous_owner TEXT, 
	epoch INTEGER DEFAULT '0' NOT NULL, 
	lease_expires_at TEXT, 
	position INTEGER DEFAULT '0' NOT NULL, 
	wake_at TEXT, 
	start_at TEXT, 
	durable BOOLEAN NOT NULL, 
	parent_run_id TEXT, 
	root_run_id TEXT NOT NULL, 
	nesting_depth INTEGER DEFAULT '0' NOT NULL, 
	child_id TEXT, 
	continued_from_run_id TEXT, 
	continued_to_run_id TEXT, 
	idempotency_key TEXT, 
	schedule_id TEXT, 
	scheduled_at TEXT, 
	input_hash TEXT DEFAULT '' NOT NULL, 
	input_args TEXT NOT NULL, 
	input_kwargs TEXT NOT NULL, 
	result TEXT, 
	error TEXT, 
	error_type TEXT, 
	metadata TEXT, 
	attributes TEXT, 
	tags TEXT, 
	max_duration FLOAT, 
	recover_on_worker_loss BOOLEAN NOT NULL, 
	recovery_attempts INTEGER DEFAULT '0' NOT NULL, 
	max_recovery_attempts INTEGER NOT NULL, 
	created_at TEXT NOT NULL, 
	updated_at TEXT NOT NULL, 
	started_at TEXT, 
	completed_at TEXT, 
	shared_recoveries INTEGER DEFAULT '0' NOT NULL, 
	PRIMARY KEY (run_id)
);
INSERT INTO "runs" VALUES('completed','upgrades_retrying','completed','95a7a78707febb71033e4da350bebf07d7c8ece5b8894feaac069b0b6d996e3f','','local-b9566470c109',NULL,NULL,1,NULL,5,NULL,NULL,1,NULL,'completed',0,NULL,NULL,NULL,NULL,NULL,NULL,'f72acf17821b5db2ac0ede1516a5eeecfc6b4db55b3b373215117c11ada0e4f5','["1ms"]','{}','"once"',NULL,NULL,NULL,NULL,NULL,NULL,1,0,3,'2026-11-27 15:01:39.241089','2026-11-27 15:01:39.264574','2026-11-27 15:01:39.256344','2026-11-27 15:01:39.264574',0);
INSERT INTO "runs" VALUES('failed','upgrades_failing','failed','54ffbd48e0ba325ec946d6603e0be105ebec24331932f083569c103d59048066','','local-b9566470c109',NULL,NULL,1,NULL,5,NULL,NULL,1,NULL,'failed',0,NULL,NULL,NULL,NULL,NULL,NULL,'07f79df313f24dc59a52bfabf579146da2b29973b9f7e782dcbf1ee768a970cf','[]','{}',NULL,'always','ValueError',NULL,NULL,NULL,NULL,1,0,3,'2026-11-27 15:01:39.266932','2026-11-27 15:01:39.274641','2026-11-27 15:01:39.268258','2026-11-27 15:01:39.274641',0);
INSERT INTO "runs" VALUES('retrying','upgrades_retrying','suspended','95a7a78707febb71033e4da350bebf07d7c8ece5b8894feaac069b0b6d996e3f','','local-b9566470c109',NULL,NULL,1,NULL,3,'2026-11-27 15:01:39.780785',NULL,1,NULL,'retrying',0,NULL,NULL,NULL,NULL,NULL,NULL,'d2509ef1cc707be88a5e028dbd9e03a672046e6929db22af873a28d8c0b06774','["500ms"]','{}',NULL,NULL,NULL,NULL,NULL,NULL,NULL,1,0,3,'2026-11-27 15:01:39.277100','2026-11-27 15:01:39.291000','2026-11-27 15:01:39.279281',NULL,0);
INSERT INTO "runs" VALUES('sleeping','upgrades_sleeping','suspended','275434ea06e2c090b95bcec0d1577609e03a3628a9f8fc10dd6560284404cd6b','','local-b9566470c109',NULL,NULL,1,NULL,4,'2026-11-27 15:01:39.598572',NULL,1,NULL,'sleeping',0,NULL,NULL,NULL,NULL,NULL,NULL,'d803bfe779e15a9746ba891c961fdd37e0af999861a8ce874851802187ac3125','[5]','{}',NULL,NULL,NULL,NULL,NULL,NULL,NULL,1,0,3,'2026-11-27 15:01:39.294710','2026-11-27 15:01:39.309000','2026-11-27 15:01:39.296288',NULL,0);
INSERT INTO "runs" VALUES('asking','upgrades_asking','suspended','735586c2981190b9a7d072df52a1c4812dcf2bcbd89843f3d9fe3999e4a2cc2a','','local-b9566470c109',NULL,NULL,1,NULL,2,'2026-11-27 15:01:39.612155',NULL,1,NULL,'asking',0,NULL,NULL,NULL,NULL,NULL,NULL,'07f79df313f24dc59a52bfabf579146da2b29973b9f7e782dcbf1ee768a970cf','[]','{}',NULL,NULL,NULL,NULL,NULL,NULL,NULL,1,0,3,'2026-11-27 15:01:39.310670','2026-11-27 15:01:39.427000','2026-11-27 15:01:39.312155',NULL,0);
INSERT INTO "runs" VALUES('listening','upgrades_listening','suspended','e659657b580f3f3efff64a41eb3e628db48f17249fece7e2eebc9e09061ebbe3','','local-b9566470c109',NULL,NULL,1,NULL,1,NULL,NULL,1,NULL,'listening',0,NULL,NULL,NULL,NULL,NULL,NULL,'07f79df313f24dc59a52bfabf579146da2b29973b9f7e782dcbf1ee768a970cf','[]','{}',NULL,NULL,NULL,NULL,NULL,NULL,NULL,1,0,3,'2026-11-27 15:01:39.561403','2026-11-27 15:01:39.586000','2026-11-27 15:01:39.569661',NULL,0);
INSERT INTO "runs" VALUES('parent','upgrades_parent','suspended','ef3ff7d367b252c10f57093644ef760f6325d44508c002ba934e079645b3f428','','local-b9566470c109',NULL,NULL,1,NULL,2,NULL,NULL,1,NULL,'parent',0,NULL,NULL,NULL,NULL,NULL,NULL,'07f79df313f24dc59a52bfabf579146da2b29973b9f7e782dcbf1ee768a970cf','[]','{}',NULL,NULL,NULL,NULL,NULL,NULL,NULL,1,0,3,'2026-11-27 15:01:39.612099','2026-11-27 15:01:39.640000','2026-11-27 15:01:39.614059',NULL,0);
INSERT INTO "runs" VALUES('run_ded5445451f9331c','upgrades_sleeping','suspended','275434ea06e2c090b95bcec0d1577609e03a3628a9f8fc10dd6560284404cd6b','','local-b9566470c109',NULL,NULL,1,NULL,4,'2026-11-27 15:01:39.917920',NULL,1,'parent','parent',1,'upgrades_sleeping#1',NULL,NULL,NULL,NULL,NULL,'945a94615ede004f82cc9fc451efa98780253f71ca60e0137f66d75889e082a1','[1]','{}',NULL,NULL,NULL,NULL,NULL,NULL,NULL,1,0,3,'2026-11-27 15:01:39.614000','2026-11-27 15:01:39.628000','2026-11-27 15:01:39.617092',NULL,0);
INSERT INTO "runs" VALUES('again','upgrades_again','continued_as_new','89a47a0d95dcaf8ba8011ca31205096dad4ad574602c139cfc66498f32e79c26','','local-b9566470c109',NULL,NULL,1,NULL,4,NULL,NULL,1,NULL,'again',0,NULL,NULL,'run_2d241f43536d3778',NULL,NULL,NULL,'945a94615ede004f82cc9fc451efa98780253f71ca60e0137f66d75889e082a1','[1]','{}',NULL,NULL,NULL,NULL,NULL,NULL,NULL,1,0,3,'2026-11-27 15:01:39.678118','2026-11-27 15:01:39.682933','2026-11-27 15:01:39.680401','2026-11-27 15:01:39.682933',0);
INSERT INTO "runs" VALUES('run_2d241f43536d3778','upgrades_again','suspended','89a47a0d95dcaf8ba8011ca31205096dad4ad574602c139cfc66498f32e79c26','','local-b9566470c109',NULL,NULL,1,NULL,3,NULL,NULL,1,NULL,'run_2d241f43536d3778',0,NULL,'again',NULL,NULL,NULL,NULL,'9791722d1018a6a5dbf7d24304a061079b0883a018f8f9ce206371ad4bdc5d7d','[0]','{}',NULL,NULL,NULL,NULL,NULL,NULL,NULL,1,0,3,'2026-11-27 15:01:39.683000','2026-11-27 15:01:39.697000','2026-11-27 15:01:39.685414',NULL,0);
INSERT INTO "runs" VALUES('wide','upgrades_wide','suspended','4a02b9941b7f2ea8491cb24744dd78120f26450af0bfc292ff74a4639941ff62','','local-b9566470c109',NULL,NULL,1,NULL,10,NULL,NULL,1,NULL,'wide',0,NULL,NULL,NULL,'wide',NULL,NULL,'07f79df313f24dc59a52bfabf579146da2b29973b9f7e782dcbf1ee768a970cf','[]','{}',NULL,NULL,NULL,'{"colour":"red"}','{"colour":"blue"}',NULL,NULL,1,0,3,'2026-11-27 15:01:39.719844','2026-11-27 15:01:39.750000','2026-11-27 15:01:39.728593',NULL,0);
INSERT INTO "runs" VALUES('large','upgrades_large','suspended','318d93eb528a098a3ede42fd4fc97ec6071d5403f42cd7ada2b8450748267095','','local-b9566470c109',NULL,NULL,1,NULL,4,'2026-11-27 15:01:40.057557',NULL,1,NULL,'large',0,NULL,NULL,NULL,NULL,NULL,NULL,'18234a70c3d190015cfb5cda7bf26480c0e1184286154b9094cf26582b55c065','{"$":"blob","hash":"83794f225d3eccd44fe332a5031b917d692666dd455512f0bb62a4f74a301f6e","size":1104}','{}',NULL,NULL,NULL,NULL,NULL,NULL,NULL,1,0,3,'2026-11-27 15:01:39.752483','2026-11-27 15:01:39.771000','2026-11-27 15:01:39.755622',NULL,0);
INSERT INTO "runs" VALUES('later','upgrades_sleeping','pending','275434ea06e2c090b95bcec0d1577609e03a3628a9f8fc10dd6560284404cd6b','','local-b9566470c109','local-b9566470c109',NULL,1,'2026-11-27 15:02:09.785000',0,NULL,'2026-11-27 15:01:59.785777',1,NULL,'later',0,NULL,NULL,NULL,NULL,NULL,NULL,'aceee919414fe7a9f409309c0141cdd7783c7f8a00cce0224ccd01539213332a','[7]','{}',NULL,NULL,NULL,NULL,NULL,NULL,NULL,1,0,3,'2026-11-27 15:01:39.785537','2026-11-27 15:01:39.785000',NULL,NULL,0);
INSERT INTO "runs" VALUES('cancelled','upgrades_careful','cancelled','5ae7f176d9d9fd5235171cb54bd5f8bbfc19cd2539dd86b0b137828e98f0d64a','','local-b9566470c109',NULL,NULL,2,NULL,6,NULL,NULL,1,NULL,'cancelled',0,NULL,NULL,NULL,NULL,NULL,NULL,'07f79df313f24dc59a52bfabf579146da2b29973b9f7e782dcbf1ee768a970cf','[]','{}',NULL,'no more','CancellationError',NULL,NULL,NULL,NULL,1,0,3,'2026-11-27 15:01:39.787114','2026-11-27 15:01:39.907427','2026-11-27 15:01:39.788386','2026-11-27 15:01:39.907427',0);
INSERT INTO "runs" VALUES('to_cancel','upgrades_careful','suspended','5ae7f176d9d9fd5235171cb54bd5f8bbfc19cd2539dd86b0b137828e98f0d64a','','local-b9566470c109',NULL,NULL,1,NULL,2,'2026-11-28 01:01:40.009820',NULL,1,NULL,'to_cancel',0,NULL,NULL,NULL,NULL,NULL,NULL,'07f79df313f24dc59a52bfabf579146da2b29973b9f7e782dcbf1ee768a970cf','[]','{}',NULL,NULL,NULL,NULL,NULL,NULL,NULL,1,0,3,'2026-11-27 15:01:39.943167','2026-11-27 15:01:40.028000','2026-11-27 15:01:40.009820',NULL,0);
INSERT INTO "runs" VALUES('astray','upgrades_astray','interrupted','7694482dc6b9a1aef73df559370dce2873be6256a9cfe9f723d44976ced1e451','','local-b9566470c109',NULL,NULL,2,NULL,3,NULL,NULL,1,NULL,'astray',0,NULL,NULL,NULL,NULL,NULL,NULL,'07f79df313f24dc59a52bfabf579146da2b29973b9f7e782dcbf1ee768a970cf','[]','{}',NULL,'Run ''astray'' replayed differently from its history at position 1:
recorded StepScheduled(''upgrades_double#1''), now ScheduleStep(''upgrades_copy#1'').
Either the workflow''s code changed under a running run: restore the order of its steps, or guard the change with patched(''...''). Or the code decides by something that differs from one execution to the next (time, random numbers, the environment, the order of a set): take it from the context (now(), random(), uuid4()), from side_effect(), or from a step.','pyworkflow_ray.exceptions.NonDeterminismError',NULL,NULL,NULL,NULL,1,0,3,'2026-11-27 15:01:40.093613','2026-11-27 15:01:40.611000','2026-11-27 15:01:40.096687',NULL,0);
INSERT INTO "runs" VALUES('run_7f7faa0dfe66bfdc','upgrades_daily','completed','5eccce11fe3b82a26a3059beaa809a31c3a405a755b9600bf2fde6d4b1bc9263','','local-b9566470c109',NULL,NULL,1,NULL,2,NULL,NULL,1,NULL,'run_7f7faa0dfe66bfdc',0,NULL,NULL,NULL,'schedule:daily:2020-01-01T00:00:00+00:00','daily','2020-01-01 00:00:00.000000','07f79df313f24dc59a52bfabf579146da2b29973b9f7e782dcbf1ee768a970cf','[]','{}','"fired"',NULL,NULL,'{"schedule_id":"daily","scheduled_at":"2020-01-01T00:00:00+00:00"}',NULL,NULL,NULL,1,0,3,'2026-11-27 15:01:40.724000','2026-11-27 15:01:40.745117','2026-11-27 15:01:40.745117','2026-11-27 15:01:40.745117',0);
INSERT INTO "runs" VALUES('run_e69b1d389bdacba3','upgrades_daily','completed','5eccce11fe3b82a26a3059beaa809a31c3a405a755b9600bf2fde6d4b1bc9263','','local-b9566470c109',NULL,NULL,1,NULL,2,NULL,NULL,1,NULL,'run_e69b1d389bdacba3',0,NULL,NULL,NULL,'schedule:daily:2020-01-02T00:00:00+00:00','daily','2020-01-02 00:00:00.000000','07f79df313f24dc59a52bfabf579146da2b29973b9f7e782dcbf1ee768a970cf','[]','{}','"fired"',NULL,NULL,'{"schedule_id":"daily","scheduled_at":"2020-01-02T00:00:00+00:00"}',NULL,NULL,NULL,1,0,3,'2026-11-27 15:01:40.724000','2026-11-27 15:01:40.744637','2026-11-27 15:01:40.744637','2026-11-27 15:01:40.744637',0);
INSERT INTO "runs" VALUES('cut','upgrades_cut','running','975af3139ddafb5c11199ee3213ff9ee8fc228c9499cf3bf62e3e07e9321e255','','local-a89346b36cff','local-a89346b36cff',NULL,1,'2026-11-27 15:02:15.468000',2,NULL,NULL,1,NULL,'cut',0,NULL,NULL,NULL,NULL,NULL,NULL,'07f79df313f24dc59a52bfabf579146da2b29973b9f7e782dcbf1ee768a970cf','[]','{}',NULL,NULL,NULL,NULL,NULL,NULL,NULL,1,0,3,'2026-11-27 15:01:45.466403','2026-11-27 15:01:45.492905','2026-11-27 15:01:45.492905',NULL,0);
CREATE TABLE schedule_events (
	schedule_id TEXT NOT NULL, 
	position BIGINT NOT NULL, 
	timestamp TEXT NOT NULL, 
	type TEXT NOT NULL, 
	data TEXT NOT NULL, 
	PRIMARY KEY (schedule_id, position), 
	FOREIGN KEY(schedule_id) REFERENCES schedules (schedule_id) ON DELETE CASCADE
)
 WITHOUT ROWID

;
INSERT INTO "schedule_events" VALUES('daily',0,'2026-11-27 15:01:40.680000','schedule.created','{"workflow_name":"upgrades_daily","spec":{"interval":"1d","start_at":"2020-01-01T00:00:00+00:00"},"overlap_policy":"skip"}');
INSERT INTO "schedule_events" VALUES('daily',1,'2026-11-27 15:01:40.721000','schedule.backfill_started','{"start":"2020-01-01T00:00:00+00:00","end":"2020-01-03T00:00:00+00:00","call":"bc5dec80a7a64ae6"}');
INSERT INTO "schedule_events" VALUES('daily',2,'2026-11-27 15:01:40.724000','schedule.triggered','{"run_id":"run_7f7faa0dfe66bfdc","scheduled_at":"2020-01-01T00:00:00+00:00","reason":"backfill","call":"bc5dec80a7a64ae6"}');
INSERT INTO "schedule_events" VALUES('daily',3,'2026-11-27 15:01:40.724000','schedule.triggered','{"run_id":"run_e69b1d389bdacba3","scheduled_at":"2020-01-02T00:00:00+00:00","reason":"backfill","call":"bc5dec80a7a64ae6"}');
INSERT INTO "schedule_events" VALUES('daily',4,'2026-11-27 15:01:40.752000','schedule.backfill_completed','{"start":"2020-01-01T00:00:00+00:00","end":"2020-01-03T00:00:00+00:00","started":2,"skipped":0,"call":"bc5dec80a7a64ae6"}');
INSERT INTO "schedule_events" VALUES('paused',0,'2026-11-27 15:01:40.713000','schedule.created','{"workflow_name":"upgrades_daily","spec":{"cron":"0 9 * * *"},"overlap_policy":"skip"}');
INSERT INTO "schedule_events" VALUES('paused',1,'2026-11-27 15:01:40.716000','schedule.paused','{}');
CREATE TABLE schedules (
	schedule_id TEXT NOT NULL, 
	workflow_name TEXT NOT NULL, 
	status TEXT NOT NULL, 
	spec TEXT NOT NULL, 
	overlap_policy TEXT NOT NULL, 
	catchup_window FLOAT NOT NULL, 
	run TEXT NOT NULL, 
	environment TEXT NOT NULL, 
	declared TEXT, 
	note TEXT, 
	version INTEGER NOT NULL, 
	anchor_at TEXT NOT NULL, 
	next_fire_at TEXT, 
	look_at TEXT, 
	buffered TEXT NOT NULL, 
	total_runs INTEGER NOT NULL, 
	successful_runs INTEGER NOT NULL, 
	failed_runs INTEGER NOT NULL, 
	skipped_runs INTEGER NOT NULL, 
	last_fire_at TEXT, 
	last_run_at TEXT, 
	last_run_id TEXT, 
	created_at TEXT NOT NULL, 
	updated_at TEXT NOT NULL, 
	PRIMARY KEY (schedule_id)
);
INSERT INTO "schedules" VALUES('daily','upgrades_daily','active','{"interval":"1d","start_at":"2020-01-01T00:00:00+00:00"}','skip',3600.0,'{"run_id":"","workflow_name":"upgrades_daily","input_args":"[]","input_kwargs":"{}","input_hash":"07f79df313f24dc59a52bfabf579146da2b29973b9f7e782dcbf1ee768a970cf","code_hash":"5eccce11fe3b82a26a3059beaa809a31c3a405a755b9600bf2fde6d4b1bc9263","idempotency_key":null,"environment":"","coordinator":null,"placement":null,"owner_lease":null,"created_at":null,"start_at":null,"wake_at":null,"durable":true,"parent_run_id":null,"root_run_id":null,"nesting_depth":0,"child_id":null,"continued_from_run_id":null,"schedule_id":null,"scheduled_at":null,"metadata":null,"attributes":null,"tags":null,"max_duration":null,"recover_on_worker_loss":true,"max_recovery_attempts":3,"code":null,"blobs":[]}','',NULL,'kept',0,'2026-11-27 15:01:40.680000','2026-11-28 00:00:00.000000','2026-11-28 00:00:00.000000','[]',2,2,0,0,NULL,NULL,NULL,'2026-11-27 15:01:40.680000','2026-11-27 15:01:40.680000');
INSERT INTO "schedules" VALUES('paused','upgrades_daily','paused','{"cron":"0 9 * * *"}','skip',3600.0,'{"run_id":"","workflow_name":"upgrades_daily","input_args":"[]","input_kwargs":"{}","input_hash":"07f79df313f24dc59a52bfabf579146da2b29973b9f7e782dcbf1ee768a970cf","code_hash":"5eccce11fe3b82a26a3059beaa809a31c3a405a755b9600bf2fde6d4b1bc9263","idempotency_key":null,"environment":"","coordinator":null,"placement":null,"owner_lease":null,"created_at":null,"start_at":null,"wake_at":null,"durable":true,"parent_run_id":null,"root_run_id":null,"nesting_depth":0,"child_id":null,"continued_from_run_id":null,"schedule_id":null,"scheduled_at":null,"metadata":null,"attributes":null,"tags":null,"max_duration":null,"recover_on_worker_loss":true,"max_recovery_attempts":3,"code":null,"blobs":[]}','',NULL,NULL,1,'2026-11-27 15:01:40.713000','2026-11-28 09:00:00.000000','2026-11-28 09:00:00.000000','[]',0,0,0,0,NULL,NULL,NULL,'2026-11-27 15:01:40.713000','2026-11-27 15:01:40.716000');
CREATE INDEX ix_runs_wake ON runs (status, wake_at) WHERE wake_at IS NOT NULL;
CREATE INDEX ix_runs_parent ON runs (parent_run_id) WHERE parent_run_id IS NOT NULL;
CREATE INDEX ix_runs_root ON runs (root_run_id) WHERE root_run_id <> run_id;
CREATE INDEX ix_runs_workflow ON runs (workflow_name, created_at, run_id);
CREATE INDEX ix_runs_created ON runs (created_at, run_id);
CREATE INDEX ix_runs_live ON runs (coordinator) WHERE status IN ('pending', 'running');
CREATE INDEX ix_runs_owner ON runs (owner) WHERE owner IS NOT NULL;
CREATE INDEX ix_runs_schedule ON runs (schedule_id, created_at) WHERE schedule_id IS NOT NULL AND NOT status IN ('completed', 'failed', 'cancelled', 'continued_as_new');
CREATE UNIQUE INDEX uq_runs_idempotency ON runs (idempotency_key, workflow_name) WHERE idempotency_key IS NOT NULL;
CREATE INDEX ix_runs_lease ON runs (lease_expires_at) WHERE lease_expires_at IS NOT NULL;
CREATE INDEX ix_runs_status ON runs (status, created_at, run_id);
CREATE INDEX ix_schedules_look ON schedules (environment, look_at) WHERE status = 'active';
CREATE INDEX ix_inbox_unread ON inbox (run_id) WHERE read_position IS NULL;
CREATE INDEX ix_hooks_delivery ON hooks (delivery_key) WHERE delivery_key IS NOT NULL;
CREATE INDEX ix_hooks_created ON hooks (created_at, run_id, hook_id);
CREATE INDEX ix_run_blobs_hash ON run_blobs (hash);
COMMIT;
