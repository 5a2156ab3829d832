CREATE TYPE public.studydirection AS ENUM (
    'NOT_SET',
    'MINIMIZE',
    'MAXIMIZE'
);
CREATE TYPE public.trialintermediatevaluetype AS ENUM (
    'FINITE',
    'INF_POS',
    'INF_NEG',
    'NAN'
);
CREATE TYPE public.trialstate AS ENUM (
    'RUNNING',
    'COMPLETE',
    'PRUNED',
    'FAIL',
    'WAITING'
);
CREATE TYPE public.trialvaluetype AS ENUM (
    'FINITE',
    'INF_POS',
    'INF_NEG'
);
CREATE TABLE public.alembic_version (
    version_num character varying(32) NOT NULL
);
CREATE TABLE public.hpo_attempt (
    trial_id integer NOT NULL,
    attempt integer NOT NULL,
    host character varying NOT NULL,
    process character varying NOT NULL,
    device character varying NOT NULL,
    code_version character varying NOT NULL,
    begun timestamp with time zone DEFAULT now() NOT NULL,
    first_step integer,
    last_step integer,
    ended timestamp with time zone,
    outcome character varying,
    reason character varying
);
CREATE TABLE public.hpo_curve (
    trial_id integer NOT NULL,
    step integer NOT NULL,
    attempt integer,
    per double precision NOT NULL,
    validation_loss double precision NOT NULL,
    loss double precision NOT NULL,
    grad_norm double precision NOT NULL,
    lr double precision NOT NULL,
    step_seconds double precision NOT NULL
);
CREATE TABLE public.hpo_result (
    study_id integer NOT NULL,
    kind character varying NOT NULL,
    made timestamp with time zone DEFAULT now() NOT NULL,
    content json NOT NULL
);
CREATE TABLE public.hpo_score (
    trial_id integer NOT NULL,
    partition character varying NOT NULL,
    errors integer[] NOT NULL,
    lengths integer[] NOT NULL
);
CREATE TABLE public.hpo_trial (
    trial_id integer NOT NULL,
    lease character varying,
    lease_until timestamp with time zone,
    host character varying,
    process character varying,
    device character varying,
    code_version character varying,
    data character varying,
    config json,
    attempts integer DEFAULT 0 NOT NULL,
    step integer DEFAULT 0 NOT NULL,
    seconds double precision DEFAULT '0'::double precision NOT NULL,
    seconds_before double precision DEFAULT '0'::double precision NOT NULL,
    gpu_seconds double precision DEFAULT '0'::double precision NOT NULL,
    memory bigint,
    errors integer[],
    lengths integer[]
);
CREATE TABLE public.studies (
    study_id integer NOT NULL,
    study_name character varying(512) NOT NULL
);
CREATE SEQUENCE public.studies_study_id_seq
    AS integer
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
ALTER SEQUENCE public.studies_study_id_seq OWNED BY public.studies.study_id;
CREATE TABLE public.study_directions (
    study_direction_id integer NOT NULL,
    direction public.studydirection NOT NULL,
    study_id integer NOT NULL,
    objective integer NOT NULL
);
CREATE SEQUENCE public.study_directions_study_direction_id_seq
    AS integer
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
ALTER SEQUENCE public.study_directions_study_direction_id_seq OWNED BY public.study_directions.study_direction_id;
CREATE TABLE public.study_system_attributes (
    study_system_attribute_id integer NOT NULL,
    study_id integer,
    key character varying(512),
    value_json text
);
CREATE SEQUENCE public.study_system_attributes_study_system_attribute_id_seq
    AS integer
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
ALTER SEQUENCE public.study_system_attributes_study_system_attribute_id_seq OWNED BY public.study_system_attributes.study_system_attribute_id;
CREATE TABLE public.study_user_attributes (
    study_user_attribute_id integer NOT NULL,
    study_id integer,
    key character varying(512),
    value_json text
);
CREATE SEQUENCE public.study_user_attributes_study_user_attribute_id_seq
    AS integer
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
ALTER SEQUENCE public.study_user_attributes_study_user_attribute_id_seq OWNED BY public.study_user_attributes.study_user_attribute_id;
CREATE TABLE public.trial_heartbeats (
    trial_heartbeat_id integer NOT NULL,
    trial_id integer NOT NULL,
    heartbeat timestamp without time zone NOT NULL
);
CREATE SEQUENCE public.trial_heartbeats_trial_heartbeat_id_seq
    AS integer
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
ALTER SEQUENCE public.trial_heartbeats_trial_heartbeat_id_seq OWNED BY public.trial_heartbeats.trial_heartbeat_id;
CREATE TABLE public.trial_intermediate_values (
    trial_intermediate_value_id integer NOT NULL,
    trial_id integer NOT NULL,
    step integer NOT NULL,
    intermediate_value double precision,
    intermediate_value_type public.trialintermediatevaluetype NOT NULL
);
CREATE SEQUENCE public.trial_intermediate_values_trial_intermediate_value_id_seq
    AS integer
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
ALTER SEQUENCE public.trial_intermediate_values_trial_intermediate_value_id_seq OWNED BY public.trial_intermediate_values.trial_intermediate_value_id;
CREATE TABLE public.trial_params (
    param_id integer NOT NULL,
    trial_id integer,
    param_name character varying(512),
    param_value double precision,
    distribution_json text
);
CREATE SEQUENCE public.trial_params_param_id_seq
    AS integer
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
ALTER SEQUENCE public.trial_params_param_id_seq OWNED BY public.trial_params.param_id;
CREATE TABLE public.trial_system_attributes (
    trial_system_attribute_id integer NOT NULL,
    trial_id integer,
    key character varying(512),
    value_json text
);
CREATE SEQUENCE public.trial_system_attributes_trial_system_attribute_id_seq
    AS integer
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
ALTER SEQUENCE public.trial_system_attributes_trial_system_attribute_id_seq OWNED BY public.trial_system_attributes.trial_system_attribute_id;
CREATE TABLE public.trial_user_attributes (
    trial_user_attribute_id integer NOT NULL,
    trial_id integer,
    key character varying(512),
    value_json text
);
CREATE SEQUENCE public.trial_user_attributes_trial_user_attribute_id_seq
    AS integer
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
ALTER SEQUENCE public.trial_user_attributes_trial_user_attribute_id_seq OWNED BY public.trial_user_attributes.trial_user_attribute_id;
CREATE TABLE public.trial_values (
    trial_value_id integer NOT NULL,
    trial_id integer NOT NULL,
    objective integer NOT NULL,
    value double precision,
    value_type public.trialvaluetype NOT NULL
);
CREATE SEQUENCE public.trial_values_trial_value_id_seq
    AS integer
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
ALTER SEQUENCE public.trial_values_trial_value_id_seq OWNED BY public.trial_values.trial_value_id;
CREATE TABLE public.trials (
    trial_id integer NOT NULL,
    number integer,
    study_id integer,
    state public.trialstate NOT NULL,
    datetime_start timestamp without time zone,
    datetime_complete timestamp without time zone
);
CREATE SEQUENCE public.trials_trial_id_seq
    AS integer
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
ALTER SEQUENCE public.trials_trial_id_seq OWNED BY public.trials.trial_id;
CREATE TABLE public.version_info (
    version_info_id integer NOT NULL,
    schema_version integer,
    library_version character varying(256),
    CONSTRAINT version_info_version_info_id_check CHECK ((version_info_id = 1))
);
ALTER TABLE ONLY public.studies ALTER COLUMN study_id SET DEFAULT nextval('public.studies_study_id_seq'::regclass);
ALTER TABLE ONLY public.study_directions ALTER COLUMN study_direction_id SET DEFAULT nextval('public.study_directions_study_direction_id_seq'::regclass);
ALTER TABLE ONLY public.study_system_attributes ALTER COLUMN study_system_attribute_id SET DEFAULT nextval('public.study_system_attributes_study_system_attribute_id_seq'::regclass);
ALTER TABLE ONLY public.study_user_attributes ALTER COLUMN study_user_attribute_id SET DEFAULT nextval('public.study_user_attributes_study_user_attribute_id_seq'::regclass);
ALTER TABLE ONLY public.trial_heartbeats ALTER COLUMN trial_heartbeat_id SET DEFAULT nextval('public.trial_heartbeats_trial_heartbeat_id_seq'::regclass);
ALTER TABLE ONLY public.trial_intermediate_values ALTER COLUMN trial_intermediate_value_id SET DEFAULT nextval('public.trial_intermediate_values_trial_intermediate_value_id_seq'::regclass);
ALTER TABLE ONLY public.trial_params ALTER COLUMN param_id SET DEFAULT nextval('public.trial_params_param_id_seq'::regclass);
ALTER TABLE ONLY public.trial_system_attributes ALTER COLUMN trial_system_attribute_id SET DEFAULT nextval('public.trial_system_attributes_trial_system_attribute_id_seq'::regclass);
ALTER TABLE ONLY public.trial_user_attributes ALTER COLUMN trial_user_attribute_id SET DEFAULT nextval('public.trial_user_attributes_trial_user_attribute_id_seq'::regclass);
ALTER TABLE ONLY public.trial_values ALTER COLUMN trial_value_id SET DEFAULT nextval('public.trial_values_trial_value_id_seq'::regclass);
ALTER TABLE ONLY public.trials ALTER COLUMN trial_id SET DEFAULT nextval('public.trials_trial_id_seq'::regclass);
INSERT INTO public.alembic_version VALUES
	('v3.2.0.a');
INSERT INTO public.hpo_attempt VALUES
	(1, 1, 'node0 boot pid:[1]', '1:1', 'cpu', '0.1.0 917c3b98', '2026-11-29 07:07:07.101899+00', 0, 6, '2026-11-29 07:07:09.022975+00', 'complete', ''),
	(3, 1, 'node0 boot pid:[1]', '1:1', 'cpu', '0.1.0 917c3b98', '2026-11-29 07:07:09.121368+00', 0, 6, '2026-11-29 07:07:09.353591+00', 'complete', ''),
	(2, 1, 'node0 boot pid:[1]', '1:1', 'cpu', '0.1.0 917c3b98', '2026-11-29 07:07:07.661713+00', 0, 6, '2026-11-29 07:07:09.595456+00', 'complete', ''),
	(4, 1, 'node0 boot pid:[1]', '1:1', 'cpu', '0.1.0 917c3b98', '2026-11-29 07:07:18.777668+00', 0, 6, '2026-11-29 07:07:20.725925+00', 'complete', ''),
	(5, 1, 'node0 boot pid:[1]', '1:1', 'cpu', '0.1.0 917c3b98', '2026-11-29 07:07:19.133767+00', 0, 6, '2026-11-29 07:07:21.077503+00', 'complete', '');
INSERT INTO public.hpo_curve VALUES
	(1, 2, 1, 1.4, 8.98271369934082, 9.32775068283081, 2.66640043258667, 0.02, 0.0074871019987767795),
	(1, 4, 1, 0.6, 8.403525352478027, 9.219384670257568, 2.4605844020843506, 0.02, 0.01014191300055245),
	(1, 6, 1, 0.6, 7.786674976348877, 8.464910507202148, 2.303375720977783, 0.02, 0.0051657525000337046),
	(3, 2, 1, 1, 10.995723724365234, 10.369036197662354, 2.4173169136047363, 0.003314115829215762, 0.006421056501494604),
	(3, 4, 1, 1, 10.908790588378906, 10.395183563232422, 2.805633544921875, 0.003314115829215762, 0.009378148999530822),
	(3, 6, 1, 1.2, 10.777152061462402, 9.913677215576172, 2.2202532291412354, 0.003314115829215762, 0.007207841501440271),
	(2, 2, 1, 1.2, 9.802923202514648, 9.61452579498291, 2.280818223953247, 0.001, 0.005452697500004433),
	(2, 4, 1, 1.2, 9.777107238769531, 9.767775058746338, 2.622349739074707, 0.001, 0.006511525498353876),
	(2, 6, 1, 1.2, 9.739521026611328, 9.841221332550049, 2.360929250717163, 0.001, 0.0037734529996669153),
	(4, 2, 1, 0.8, 8.762349128723145, 8.999348163604736, 1.948793649673462, 0.02, 0.010271460501826368),
	(4, 4, 1, 0.6, 8.11630630493164, 9.119405269622803, 2.338200569152832, 0.02, 0.009216714999638498),
	(4, 6, 1, 0.6, 7.447817802429199, 8.960116863250732, 2.170532703399658, 0.02, 0.00868683249973401),
	(5, 2, 1, 1.2, 9.430448532104492, 9.097325325012207, 1.948793649673462, 0.001, 0.00998895749944495),
	(5, 4, 1, 1.2, 9.403047561645508, 9.68925952911377, 2.3176944255828857, 0.001, 0.007491516500522266),
	(5, 6, 1, 1.6, 9.363790512084961, 9.91683292388916, 2.1403210163116455, 0.001, 0.005079117501736619);
INSERT INTO public.hpo_result VALUES
	(1, 'confirm', '2026-11-29 07:07:23.437396+00', '{"child": "tiny.confirm", "partition": "test", "sentences": 24, "level": 0.95, "gpu_seconds": 3.7329664069984574, "configs": [{"name": "baseline", "trial": 0, "start": "baseline", "top": true, "search_per": 0.6, "seeds": [{"trial": 0, "seed": 1000000, "state": "complete", "reason": "", "per": 0.6666666666666666, "validation_per": 0.6}], "validation_per": 0.6, "per": 0.6666666666666666, "interval": [0.5704929888040549, 0.7679191155381662], "counts": "1", "optimism": 0.06666666666666665, "selection": 0.0, "partition_shift": 0.06666666666666665}, {"name": "slow", "trial": 1, "start": "slow", "top": false, "search_per": 1.2, "seeds": [{"trial": 1, "seed": 1000000, "state": "complete", "reason": "", "per": 1.1594202898550725, "validation_per": 1.6}], "validation_per": 1.6, "per": 1.1594202898550725, "interval": [1.0491491039330965, 1.2831639446852383], "counts": "1", "optimism": -0.04057971014492745, "selection": 0.40000000000000013, "partition_shift": -0.4405797101449276}], "comparisons": [{"a": "baseline", "b": "slow", "difference": -0.4927536231884058, "interval": [-0.6144677447409413, -0.37149115979641695], "p": 0.0002, "decided": true, "p_holm": 0.0002}], "separated": true, "notes": ["One seed: the intervals are over sentences alone. They know nothing of how much seeds matter; take --seeds 2 or more."]}');
INSERT INTO public.hpo_score VALUES
	(4, 'test', '{2,2,3,2,1,2,2,3,2,2,1,3,3,1,3,1,2,1,2,1,3,1,2,1}', '{3,2,3,3,2,4,4,4,3,3,2,3,4,2,3,2,2,2,4,3,3,3,2,3}'),
	(5, 'test', '{5,2,3,4,2,4,5,4,3,3,2,5,5,2,3,3,4,3,4,3,3,2,3,3}', '{3,2,3,3,2,4,4,4,3,3,2,3,4,2,3,2,2,2,4,3,3,3,2,3}');
INSERT INTO public.hpo_trial VALUES
	(2, NULL, NULL, 'node0 boot pid:[1]', '1:1', 'cpu', '0.1.0 917c3b98', '05d359166bbad544', '{"model.layers": 1, "model.units": 8, "model.bidirectional": true, "model.kernel": 4, "model.stride": 2, "model.dropout": 0.4, "model.input_dropout": 0.0, "model.layer_norm": false, "model.smoothing_width": 2.0, "model.smoothing_kernel": 20, "model.classes": 40, "model.padding": "masked", "optimizer.name": "sgd", "optimizer.lr": 0.001, "optimizer.eps": 0.1, "optimizer.beta1": 0.9, "optimizer.beta2": 0.999, "optimizer.momentum": 0.9, "optimizer.nesterov": false, "optimizer.weight_decay": 1e-05, "optimizer.grad_clip_norm": null, "optimizer.ema_decay": null, "schedule.name": "constant", "schedule.end_factor": 0.01, "schedule.warmup": 0.1, "schedule.patience": 8, "schedule.factor": 0.5, "schedule.min_lr": 1e-05, "augment.white_noise_sd": 0.8, "augment.constant_offset_sd": 0.2, "augment.time_masks": 0, "augment.time_mask_p": 0.1, "augment.time_mask_width": 40, "augment.feature_masks": 0, "augment.feature_mask_p": 0.1, "augment.feature_mask_width": 12, "steps": 6, "batch_size": 4, "accumulation": 1, "batches": "similar", "precision": "tf32", "evaluate_every": 2, "seed": 1}', 1, 6, 1.8091784270000062, 0, 1.8091784270000062, 403247104, '{3,3}', '{2,3}'),
	(1, NULL, NULL, 'node0 boot pid:[1]', '1:1', 'cpu', '0.1.0 917c3b98', '05d359166bbad544', '{"model.layers": 1, "model.units": 8, "model.bidirectional": true, "model.kernel": 4, "model.stride": 2, "model.dropout": 0.4, "model.input_dropout": 0.0, "model.layer_norm": false, "model.smoothing_width": 2.0, "model.smoothing_kernel": 20, "model.classes": 40, "model.padding": "masked", "optimizer.name": "adam", "optimizer.lr": 0.02, "optimizer.eps": 0.1, "optimizer.beta1": 0.9, "optimizer.beta2": 0.999, "optimizer.momentum": 0.9, "optimizer.nesterov": false, "optimizer.weight_decay": 1e-05, "optimizer.grad_clip_norm": null, "optimizer.ema_decay": null, "schedule.name": "constant", "schedule.end_factor": 0.01, "schedule.warmup": 0.1, "schedule.patience": 8, "schedule.factor": 0.5, "schedule.min_lr": 1e-05, "augment.white_noise_sd": 0.8, "augment.constant_offset_sd": 0.2, "augment.time_masks": 0, "augment.time_mask_p": 0.1, "augment.time_mask_width": 40, "augment.feature_masks": 0, "augment.feature_mask_p": 0.1, "augment.feature_mask_width": 12, "steps": 6, "batch_size": 4, "accumulation": 1, "batches": "similar", "precision": "tf32", "evaluate_every": 2, "seed": 0}', 1, 6, 1.7733752810017904, 0, 1.7733752810017904, 403906560, '{1,2}', '{2,3}'),
	(5, NULL, NULL, 'node0 boot pid:[1]', '1:1', 'cpu', '0.1.0 917c3b98', '05d359166bbad544', '{"model.layers": 1, "model.units": 8, "model.bidirectional": true, "model.kernel": 4, "model.stride": 2, "model.dropout": 0.4, "model.input_dropout": 0.0, "model.layer_norm": false, "model.smoothing_width": 2.0, "model.smoothing_kernel": 20, "model.classes": 40, "model.padding": "masked", "optimizer.name": "sgd", "optimizer.lr": 0.001, "optimizer.eps": 0.1, "optimizer.beta1": 0.9, "optimizer.beta2": 0.999, "optimizer.momentum": 0.9, "optimizer.nesterov": false, "optimizer.weight_decay": 1e-05, "optimizer.grad_clip_norm": null, "optimizer.ema_decay": null, "schedule.name": "constant", "schedule.end_factor": 0.01, "schedule.warmup": 0.1, "schedule.patience": 8, "schedule.factor": 0.5, "schedule.min_lr": 1e-05, "augment.white_noise_sd": 0.8, "augment.constant_offset_sd": 0.2, "augment.time_masks": 0, "augment.time_mask_p": 0.1, "augment.time_mask_width": 40, "augment.feature_masks": 0, "augment.feature_mask_p": 0.1, "augment.feature_mask_width": 12, "steps": 6, "batch_size": 4, "accumulation": 1, "batches": "similar", "precision": "tf32", "evaluate_every": 2, "seed": 1000000}', 1, 6, 1.8687284000006912, 0, 1.8687284000006912, 403079168, '{5,3}', '{2,3}'),
	(3, NULL, NULL, 'node0 boot pid:[1]', '1:1', 'cpu', '0.1.0 917c3b98', '05d359166bbad544', '{"model.layers": 1, "model.units": 8, "model.bidirectional": true, "model.kernel": 4, "model.stride": 2, "model.dropout": 0.4, "model.input_dropout": 0.0, "model.layer_norm": false, "model.smoothing_width": 2.0, "model.smoothing_kernel": 20, "model.classes": 40, "model.padding": "masked", "optimizer.name": "sgd", "optimizer.lr": 0.003314115829215762, "optimizer.eps": 0.1, "optimizer.beta1": 0.9, "optimizer.beta2": 0.999, "optimizer.momentum": 0.9, "optimizer.nesterov": false, "optimizer.weight_decay": 1e-05, "optimizer.grad_clip_norm": null, "optimizer.ema_decay": null, "schedule.name": "constant", "schedule.end_factor": 0.01, "schedule.warmup": 0.1, "schedule.patience": 8, "schedule.factor": 0.5, "schedule.min_lr": 1e-05, "augment.white_noise_sd": 0.8, "augment.constant_offset_sd": 0.2, "augment.time_masks": 0, "augment.time_mask_p": 0.1, "augment.time_mask_width": 40, "augment.feature_masks": 0, "augment.feature_mask_p": 0.1, "augment.feature_mask_width": 12, "steps": 6, "batch_size": 4, "accumulation": 1, "batches": "similar", "precision": "tf32", "evaluate_every": 2, "seed": 2}', 1, 6, 0.1281895979991532, 0, 0.1281895979991532, 404983808, '{3,3}', '{2,3}'),
	(4, NULL, NULL, 'node0 boot pid:[1]', '1:1', 'cpu', '0.1.0 917c3b98', '05d359166bbad544', '{"model.layers": 1, "model.units": 8, "model.bidirectional": true, "model.kernel": 4, "model.stride": 2, "model.dropout": 0.4, "model.input_dropout": 0.0, "model.layer_norm": false, "model.smoothing_width": 2.0, "model.smoothing_kernel": 20, "model.classes": 40, "model.padding": "masked", "optimizer.name": "adam", "optimizer.lr": 0.02, "optimizer.eps": 0.1, "optimizer.beta1": 0.9, "optimizer.beta2": 0.999, "optimizer.momentum": 0.9, "optimizer.nesterov": false, "optimizer.weight_decay": 1e-05, "optimizer.grad_clip_norm": null, "optimizer.ema_decay": null, "schedule.name": "constant", "schedule.end_factor": 0.01, "schedule.warmup": 0.1, "schedule.patience": 8, "schedule.factor": 0.5, "schedule.min_lr": 1e-05, "augment.white_noise_sd": 0.8, "augment.constant_offset_sd": 0.2, "augment.time_masks": 0, "augment.time_mask_p": 0.1, "augment.time_mask_width": 40, "augment.feature_masks": 0, "augment.feature_mask_p": 0.1, "augment.feature_mask_width": 12, "steps": 6, "batch_size": 4, "accumulation": 1, "batches": "similar", "precision": "tf32", "evaluate_every": 2, "seed": 1000000}', 1, 6, 1.8642380069977662, 0, 1.8642380069977662, 403226624, '{1,2}', '{2,3}');
INSERT INTO public.studies VALUES
	(1, 'tiny'),
	(2, 'tiny.confirm');
INSERT INTO public.study_directions VALUES
	(1, 'MINIMIZE', 1, 0),
	(2, 'MINIMIZE', 2, 0);
INSERT INTO public.study_user_attributes VALUES
	(1, 1, 'unique', '"65728cad"'),
	(2, 1, 'data', '{"path": "/data/ptDecoder_ctc", "fingerprint": "05d359166bbad544", "n_features": 3, "n_days": 2}'),
	(3, 1, 'budget', '{"trials": 3, "failures": 10, "gpu_hours": null, "deadline": null, "min_gain": null}'),
	(4, 1, 'digest', '"82ebf5ba1606"'),
	(5, 1, 'spec', '{"space": "tiny", "profile": null, "question": "", "questions": [], "base": {"model": {"layers": 1, "units": 8, "bidirectional": true, "kernel": 4, "stride": 2, "dropout": 0.4, "input_dropout": 0.0, "layer_norm": false, "smoothing_width": 2.0, "smoothing_kernel": 20, "classes": 40, "padding": "masked"}, "optimizer": {"name": "adam", "lr": 0.02, "eps": 0.1, "beta1": 0.9, "beta2": 0.999, "momentum": 0.9, "nesterov": false, "weight_decay": 1e-05, "grad_clip_norm": null, "ema_decay": null}, "schedule": {"name": "constant", "end_factor": 0.01, "warmup": 0.1, "patience": 8, "factor": 0.5, "min_lr": 1e-05}, "augment": {"white_noise_sd": 0.8, "constant_offset_sd": 0.2, "time_masks": 0, "time_mask_p": 0.1, "time_mask_width": 40, "feature_masks": 0, "feature_mask_p": 0.1, "feature_mask_width": 12}, "steps": 6, "batch_size": 4, "accumulation": 1, "batches": "similar", "precision": "tf32", "evaluate_every": 2, "seed": 0}, "parameters": {"optimizer.lr": {"low": 0.0001, "high": 0.05, "log": true, "choices": null, "when": {}}, "optimizer.name": {"low": null, "high": null, "log": false, "choices": ["adam", "sgd"], "when": {}}, "optimizer.eps": {"low": 1e-08, "high": 0.1, "log": true, "choices": null, "when": {"optimizer.name": ["adam"]}}}, "starts": {"baseline": {}, "slow": {"optimizer.lr": 0.001, "optimizer.name": "sgd"}}, "budget": {"trials": 3, "failures": 10, "gpu_hours": null, "deadline": null, "min_gain": null}, "attempts": {"max_attempts": 3, "lease_seconds": 600.0, "checkpoint_seconds": 30.0}, "policy": "tpe", "sampler": {"startup_trials": 3, "seed": 0}, "validation": {"fraction": 0.1, "seed": 0}, "stopping": {"per_margin": 0.04, "per_patience": 3, "loss_factor": 2.0, "loss_patience": 2, "learned_per": 0.7}, "child": null}'),
	(6, 1, 'code', '"0.1.0 917c3b98"'),
	(7, 2, 'unique', '"12f2e415"'),
	(8, 2, 'data', '{"path": "/data/ptDecoder_ctc", "fingerprint": "05d359166bbad544", "n_features": 3, "n_days": 2}'),
	(10, 2, 'digest', '"b9f5a5e8a298"'),
	(11, 2, 'spec', '{"space": "tiny", "profile": null, "question": "", "questions": [], "base": {"model": {"layers": 1, "units": 8, "bidirectional": true, "kernel": 4, "stride": 2, "dropout": 0.4, "input_dropout": 0.0, "layer_norm": false, "smoothing_width": 2.0, "smoothing_kernel": 20, "classes": 40, "padding": "masked"}, "optimizer": {"name": "adam", "lr": 0.02, "eps": 0.1, "beta1": 0.9, "beta2": 0.999, "momentum": 0.9, "nesterov": false, "weight_decay": 1e-05, "grad_clip_norm": null, "ema_decay": null}, "schedule": {"name": "constant", "end_factor": 0.01, "warmup": 0.1, "patience": 8, "factor": 0.5, "min_lr": 1e-05}, "augment": {"white_noise_sd": 0.8, "constant_offset_sd": 0.2, "time_masks": 0, "time_mask_p": 0.1, "time_mask_width": 40, "feature_masks": 0, "feature_mask_p": 0.1, "feature_mask_width": 12}, "steps": 6, "batch_size": 4, "accumulation": 1, "batches": "similar", "precision": "tf32", "evaluate_every": 2, "seed": 0}, "parameters": {"optimizer.lr": {"low": 0.0001, "high": 0.05, "log": true, "choices": null, "when": {}}, "optimizer.name": {"low": null, "high": null, "log": false, "choices": ["adam", "sgd"], "when": {}}, "optimizer.eps": {"low": 1e-08, "high": 0.1, "log": true, "choices": null, "when": {"optimizer.name": ["adam"]}}}, "starts": {}, "budget": {"trials": 0, "failures": 10, "gpu_hours": null, "deadline": null, "min_gain": null}, "attempts": {"max_attempts": 3, "lease_seconds": 600.0, "checkpoint_seconds": 30.0}, "policy": "tpe", "sampler": {"startup_trials": 3, "seed": 0}, "validation": {"fraction": 0.1, "seed": 0}, "stopping": {"per_margin": 0.04, "per_patience": 3, "loss_factor": 2.0, "loss_patience": 2, "learned_per": 0.7}, "child": {"parent": "tiny", "unique": "65728cad", "score": ["test"]}}'),
	(12, 2, 'code', '"0.1.0 917c3b98"'),
	(13, 2, 'trackers', '[]'),
	(9, 2, 'budget', '{"trials": 2, "failures": 10, "gpu_hours": null, "deadline": null, "min_gain": null}');
INSERT INTO public.trial_intermediate_values VALUES
	(1, 1, 2, 1.4, 'FINITE'),
	(2, 1, 4, 0.6, 'FINITE'),
	(3, 1, 6, 0.6, 'FINITE'),
	(4, 3, 2, 1, 'FINITE'),
	(5, 3, 4, 1, 'FINITE'),
	(6, 3, 6, 1.2, 'FINITE'),
	(7, 2, 2, 1.2, 'FINITE'),
	(8, 2, 4, 1.2, 'FINITE'),
	(9, 2, 6, 1.2, 'FINITE'),
	(10, 4, 2, 0.8, 'FINITE'),
	(11, 4, 4, 0.6, 'FINITE'),
	(12, 4, 6, 0.6, 'FINITE'),
	(13, 5, 2, 1.2, 'FINITE'),
	(14, 5, 4, 1.2, 'FINITE'),
	(15, 5, 6, 1.6, 'FINITE');
INSERT INTO public.trial_params VALUES
	(1, 1, 'optimizer.lr', 0.02, '{"name": "FloatDistribution", "attributes": {"step": null, "low": 0.0001, "high": 0.05, "log": true}}'),
	(2, 1, 'optimizer.name', 0, '{"name": "CategoricalDistribution", "attributes": {"choices": ["adam", "sgd"]}}'),
	(3, 1, 'optimizer.eps', 0.1, '{"name": "FloatDistribution", "attributes": {"step": null, "low": 1e-08, "high": 0.1, "log": true}}'),
	(4, 2, 'optimizer.lr', 0.001, '{"name": "FloatDistribution", "attributes": {"step": null, "low": 0.0001, "high": 0.05, "log": true}}'),
	(5, 2, 'optimizer.name', 1, '{"name": "CategoricalDistribution", "attributes": {"choices": ["adam", "sgd"]}}'),
	(6, 3, 'optimizer.lr', 0.003314115829215762, '{"name": "FloatDistribution", "attributes": {"step": null, "low": 0.0001, "high": 0.05, "log": true}}'),
	(7, 3, 'optimizer.name', 1, '{"name": "CategoricalDistribution", "attributes": {"choices": ["adam", "sgd"]}}'),
	(8, 4, 'optimizer.lr', 0.02, '{"name": "FloatDistribution", "attributes": {"step": null, "low": 0.0001, "high": 0.05, "log": true}}'),
	(9, 4, 'optimizer.name', 0, '{"name": "CategoricalDistribution", "attributes": {"choices": ["adam", "sgd"]}}'),
	(10, 4, 'optimizer.eps', 0.1, '{"name": "FloatDistribution", "attributes": {"step": null, "low": 1e-08, "high": 0.1, "log": true}}'),
	(11, 5, 'optimizer.lr', 0.001, '{"name": "FloatDistribution", "attributes": {"step": null, "low": 0.0001, "high": 0.05, "log": true}}'),
	(12, 5, 'optimizer.name', 1, '{"name": "CategoricalDistribution", "attributes": {"choices": ["adam", "sgd"]}}');
INSERT INTO public.trial_system_attributes VALUES
	(1, 1, 'fixed_params', '{"optimizer.lr": 0.02, "optimizer.name": "adam", "optimizer.eps": 0.1}'),
	(2, 2, 'fixed_params', '{"optimizer.lr": 0.001, "optimizer.name": "sgd"}');
INSERT INTO public.trial_user_attributes VALUES
	(1, 1, 'start', '"baseline"'),
	(2, 2, 'start', '"slow"'),
	(3, 4, 'fixed', '{"model.layers": 1, "model.units": 8, "model.bidirectional": true, "model.kernel": 4, "model.stride": 2, "model.dropout": 0.4, "model.input_dropout": 0.0, "model.layer_norm": false, "model.smoothing_width": 2.0, "model.smoothing_kernel": 20, "model.classes": 40, "model.padding": "masked", "optimizer.name": "adam", "optimizer.lr": 0.02, "optimizer.eps": 0.1, "optimizer.beta1": 0.9, "optimizer.beta2": 0.999, "optimizer.momentum": 0.9, "optimizer.nesterov": false, "optimizer.weight_decay": 1e-05, "optimizer.grad_clip_norm": null, "optimizer.ema_decay": null, "schedule.name": "constant", "schedule.end_factor": 0.01, "schedule.warmup": 0.1, "schedule.patience": 8, "schedule.factor": 0.5, "schedule.min_lr": 1e-05, "augment.white_noise_sd": 0.8, "augment.constant_offset_sd": 0.2, "augment.time_masks": 0, "augment.time_mask_p": 0.1, "augment.time_mask_width": 40, "augment.feature_masks": 0, "augment.feature_mask_p": 0.1, "augment.feature_mask_width": 12, "steps": 6, "batch_size": 4, "accumulation": 1, "batches": "similar", "precision": "tf32", "evaluate_every": 2, "seed": 1000000}'),
	(4, 4, 'label', '"baseline"'),
	(5, 5, 'fixed', '{"model.layers": 1, "model.units": 8, "model.bidirectional": true, "model.kernel": 4, "model.stride": 2, "model.dropout": 0.4, "model.input_dropout": 0.0, "model.layer_norm": false, "model.smoothing_width": 2.0, "model.smoothing_kernel": 20, "model.classes": 40, "model.padding": "masked", "optimizer.name": "sgd", "optimizer.lr": 0.001, "optimizer.eps": 0.1, "optimizer.beta1": 0.9, "optimizer.beta2": 0.999, "optimizer.momentum": 0.9, "optimizer.nesterov": false, "optimizer.weight_decay": 1e-05, "optimizer.grad_clip_norm": null, "optimizer.ema_decay": null, "schedule.name": "constant", "schedule.end_factor": 0.01, "schedule.warmup": 0.1, "schedule.patience": 8, "schedule.factor": 0.5, "schedule.min_lr": 1e-05, "augment.white_noise_sd": 0.8, "augment.constant_offset_sd": 0.2, "augment.time_masks": 0, "augment.time_mask_p": 0.1, "augment.time_mask_width": 40, "augment.feature_masks": 0, "augment.feature_mask_p": 0.1, "augment.feature_mask_width": 12, "steps": 6, "batch_size": 4, "accumulation": 1, "batches": "similar", "precision": "tf32", "evaluate_every": 2, "seed": 1000000}'),
	(6, 5, 'label', '"slow"');
INSERT INTO public.trial_values VALUES
	(1, 1, 0, 0.6, 'FINITE'),
	(2, 3, 0, 1.2, 'FINITE'),
	(3, 2, 0, 1.2, 'FINITE'),
	(4, 4, 0, 0.6, 'FINITE'),
	(5, 5, 0, 1.6, 'FINITE');
INSERT INTO public.trials VALUES
	(1, 0, 1, 'COMPLETE', '2026-11-29 07:07:07.069931', '2026-11-29 07:07:09.053445'),
	(3, 2, 1, 'COMPLETE', '2026-11-29 07:07:09.098812', '2026-11-29 07:07:09.378561'),
	(2, 1, 1, 'COMPLETE', '2026-11-29 07:07:07.6376', '2026-11-29 07:07:09.627535'),
	(4, 0, 2, 'COMPLETE', '2026-11-29 07:07:18.75319', '2026-11-29 07:07:20.757239'),
	(5, 1, 2, 'COMPLETE', '2026-11-29 07:07:19.120575', '2026-11-29 07:07:21.106318');
INSERT INTO public.version_info VALUES
	(1, 12, '5.0.0');
SELECT pg_catalog.setval('public.studies_study_id_seq', 2, true);
SELECT pg_catalog.setval('public.study_directions_study_direction_id_seq', 2, true);
SELECT pg_catalog.setval('public.study_system_attributes_study_system_attribute_id_seq', 1, false);
SELECT pg_catalog.setval('public.study_user_attributes_study_user_attribute_id_seq', 13, true);
SELECT pg_catalog.setval('public.trial_heartbeats_trial_heartbeat_id_seq', 1, false);
SELECT pg_catalog.setval('public.trial_intermediate_values_trial_intermediate_value_id_seq', 15, true);
SELECT pg_catalog.setval('public.trial_params_param_id_seq', 12, true);
SELECT pg_catalog.setval('public.trial_system_attributes_trial_system_attribute_id_seq', 2, true);
SELECT pg_catalog.setval('public.trial_user_attributes_trial_user_attribute_id_seq', 6, true);
SELECT pg_catalog.setval('public.trial_values_trial_value_id_seq', 5, true);
SELECT pg_catalog.setval('public.trials_trial_id_seq', 5, true);
ALTER TABLE ONLY public.alembic_version
    ADD CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num);
ALTER TABLE ONLY public.hpo_attempt
    ADD CONSTRAINT hpo_attempt_pkey PRIMARY KEY (trial_id, attempt);
ALTER TABLE ONLY public.hpo_curve
    ADD CONSTRAINT hpo_curve_pkey PRIMARY KEY (trial_id, step);
ALTER TABLE ONLY public.hpo_result
    ADD CONSTRAINT hpo_result_pkey PRIMARY KEY (study_id, kind);
ALTER TABLE ONLY public.hpo_score
    ADD CONSTRAINT hpo_score_pkey PRIMARY KEY (trial_id, partition);
ALTER TABLE ONLY public.hpo_trial
    ADD CONSTRAINT hpo_trial_pkey PRIMARY KEY (trial_id);
ALTER TABLE ONLY public.studies
    ADD CONSTRAINT studies_pkey PRIMARY KEY (study_id);
ALTER TABLE ONLY public.study_directions
    ADD CONSTRAINT study_directions_pkey PRIMARY KEY (study_direction_id);
ALTER TABLE ONLY public.study_directions
    ADD CONSTRAINT study_directions_study_id_objective_key UNIQUE (study_id, objective);
ALTER TABLE ONLY public.study_system_attributes
    ADD CONSTRAINT study_system_attributes_pkey PRIMARY KEY (study_system_attribute_id);
ALTER TABLE ONLY public.study_system_attributes
    ADD CONSTRAINT study_system_attributes_study_id_key_key UNIQUE (study_id, key);
ALTER TABLE ONLY public.study_user_attributes
    ADD CONSTRAINT study_user_attributes_pkey PRIMARY KEY (study_user_attribute_id);
ALTER TABLE ONLY public.study_user_attributes
    ADD CONSTRAINT study_user_attributes_study_id_key_key UNIQUE (study_id, key);
ALTER TABLE ONLY public.trial_heartbeats
    ADD CONSTRAINT trial_heartbeats_pkey PRIMARY KEY (trial_heartbeat_id);
ALTER TABLE ONLY public.trial_heartbeats
    ADD CONSTRAINT trial_heartbeats_trial_id_key UNIQUE (trial_id);
ALTER TABLE ONLY public.trial_intermediate_values
    ADD CONSTRAINT trial_intermediate_values_pkey PRIMARY KEY (trial_intermediate_value_id);
ALTER TABLE ONLY public.trial_intermediate_values
    ADD CONSTRAINT trial_intermediate_values_trial_id_step_key UNIQUE (trial_id, step);
ALTER TABLE ONLY public.trial_params
    ADD CONSTRAINT trial_params_pkey PRIMARY KEY (param_id);
ALTER TABLE ONLY public.trial_params
    ADD CONSTRAINT trial_params_trial_id_param_name_key UNIQUE (trial_id, param_name);
ALTER TABLE ONLY public.trial_system_attributes
    ADD CONSTRAINT trial_system_attributes_pkey PRIMARY KEY (trial_system_attribute_id);
ALTER TABLE ONLY public.trial_system_attributes
    ADD CONSTRAINT trial_system_attributes_trial_id_key_key UNIQUE (trial_id, key);
ALTER TABLE ONLY public.trial_user_attributes
    ADD CONSTRAINT trial_user_attributes_pkey PRIMARY KEY (trial_user_attribute_id);
ALTER TABLE ONLY public.trial_user_attributes
    ADD CONSTRAINT trial_user_attributes_trial_id_key_key UNIQUE (trial_id, key);
ALTER TABLE ONLY public.trial_values
    ADD CONSTRAINT trial_values_pkey PRIMARY KEY (trial_value_id);
ALTER TABLE ONLY public.trial_values
    ADD CONSTRAINT trial_values_trial_id_objective_key UNIQUE (trial_id, objective);
ALTER TABLE ONLY public.trials
    ADD CONSTRAINT trials_pkey PRIMARY KEY (trial_id);
ALTER TABLE ONLY public.version_info
    ADD CONSTRAINT version_info_pkey PRIMARY KEY (version_info_id);
CREATE INDEX hpo_trial_held ON public.hpo_trial USING btree (host, device) WHERE (lease IS NOT NULL);
CREATE UNIQUE INDEX ix_studies_study_name ON public.studies USING btree (study_name);
CREATE INDEX ix_trials_study_id ON public.trials USING btree (study_id);
ALTER TABLE ONLY public.hpo_attempt
    ADD CONSTRAINT hpo_attempt_trial_id_fkey FOREIGN KEY (trial_id) REFERENCES public.trials(trial_id) ON DELETE CASCADE;
ALTER TABLE ONLY public.hpo_curve
    ADD CONSTRAINT hpo_curve_trial_id_fkey FOREIGN KEY (trial_id) REFERENCES public.trials(trial_id) ON DELETE CASCADE;
ALTER TABLE ONLY public.hpo_result
    ADD CONSTRAINT hpo_result_study_id_fkey FOREIGN KEY (study_id) REFERENCES public.studies(study_id) ON DELETE CASCADE;
ALTER TABLE ONLY public.hpo_score
    ADD CONSTRAINT hpo_score_trial_id_fkey FOREIGN KEY (trial_id) REFERENCES public.trials(trial_id) ON DELETE CASCADE;
ALTER TABLE ONLY public.hpo_trial
    ADD CONSTRAINT hpo_trial_trial_id_fkey FOREIGN KEY (trial_id) REFERENCES public.trials(trial_id) ON DELETE CASCADE;
ALTER TABLE ONLY public.study_directions
    ADD CONSTRAINT study_directions_study_id_fkey FOREIGN KEY (study_id) REFERENCES public.studies(study_id);
ALTER TABLE ONLY public.study_system_attributes
    ADD CONSTRAINT study_system_attributes_study_id_fkey FOREIGN KEY (study_id) REFERENCES public.studies(study_id);
ALTER TABLE ONLY public.study_user_attributes
    ADD CONSTRAINT study_user_attributes_study_id_fkey FOREIGN KEY (study_id) REFERENCES public.studies(study_id);
ALTER TABLE ONLY public.trial_heartbeats
    ADD CONSTRAINT trial_heartbeats_trial_id_fkey FOREIGN KEY (trial_id) REFERENCES public.trials(trial_id);
ALTER TABLE ONLY public.trial_intermediate_values
    ADD CONSTRAINT trial_intermediate_values_trial_id_fkey FOREIGN KEY (trial_id) REFERENCES public.trials(trial_id);
ALTER TABLE ONLY public.trial_params
    ADD CONSTRAINT trial_params_trial_id_fkey FOREIGN KEY (trial_id) REFERENCES public.trials(trial_id);
ALTER TABLE ONLY public.trial_system_attributes
    ADD CONSTRAINT trial_system_attributes_trial_id_fkey FOREIGN KEY (trial_id) REFERENCES public.trials(trial_id);
ALTER TABLE ONLY public.trial_user_attributes
    ADD CONSTRAINT trial_user_attributes_trial_id_fkey FOREIGN KEY (trial_id) REFERENCES public.trials(trial_id);
ALTER TABLE ONLY public.trial_values
    ADD CONSTRAINT trial_values_trial_id_fkey FOREIGN KEY (trial_id) REFERENCES public.trials(trial_id);
ALTER TABLE ONLY public.trials
    ADD CONSTRAINT trials_study_id_fkey FOREIGN KEY (study_id) REFERENCES public.studies(study_id);
