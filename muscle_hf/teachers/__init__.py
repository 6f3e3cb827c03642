"""Frozen teachers: the old and the new task model, on as few copies of a base as possible."""

from muscle_hf.teachers.casting import make_student, make_teacher
from muscle_hf.teachers.kinds import ModelKind, kind_of
from muscle_hf.teachers.teacher import AdapterTeacher, ModelTeacher, Teacher, TeacherOutputError

__all__ = [
    "AdapterTeacher",
    "ModelKind",
    "ModelTeacher",
    "Teacher",
    "TeacherOutputError",
    "kind_of",
    "make_student",
    "make_teacher",
]
