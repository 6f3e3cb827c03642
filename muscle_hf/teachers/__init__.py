"""Frozen teachers: the old and the new task model, on as few copies of a base as possible."""

from muscle_hf.lazy import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "AdapterTeacher": "teacher",
        "ModelKind": "kinds",
        "ModelTeacher": "teacher",
        "Teacher": "teacher",
        "TeacherOutputError": "forward",
        "kind_of": "kinds",
        "load_task_model": "loading",
        "make_student": "roles",
        "make_teacher": "roles",
    },
)
